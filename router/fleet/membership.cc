#include "router/fleet/membership.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "proto/base/log.h"
#include "proto/option_checks.h"

namespace glm::router {
namespace {

constexpr int64_t kFileBytesMax = 1 << 20;
constexpr std::chrono::seconds kFileInterval{1};

std::string TextOf(const sockaddr* address) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address->sa_family == AF_INET) {
    inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(address)->sin_addr, text,
              sizeof(text));
    return text;
  }
  inet_ntop(AF_INET6, &reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr, text,
            sizeof(text));
  return absl::StrCat("[", text, "]");
}

absl::StatusOr<std::vector<std::string>> ListOf(const FileReading& reading) {
  if (!reading.error.empty()) return absl::UnavailableError(reading.error);
  return ParseMemberList(reading.content);
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ParseMemberList(absl::string_view text) {
  std::vector<std::string> addresses;
  std::set<absl::string_view> seen;
  int32_t number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line.substr(0, line.find('#')));
    if (line.empty() || !seen.insert(line).second) continue;
    if (!IsAddress(line, 1)) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, ": '", line.substr(0, 256),
                       "' must be host:port, with a port from 1 to 65535, or unix:/path"));
    }
    addresses.emplace_back(line);
  }
  return addresses;
}

absl::StatusOr<std::vector<std::string>> ResolveHost(const std::string& host) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_ADDRCONFIG;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), nullptr, &hints, &found); error != 0) {
    return absl::UnavailableError(absl::StrCat("'", host, "': ", gai_strerror(error)));
  }
  std::set<std::string> addresses;
  for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
    if (each->ai_family == AF_INET || each->ai_family == AF_INET6) {
      addresses.insert(TextOf(each->ai_addr));
    }
  }
  freeaddrinfo(found);
  if (addresses.empty()) return absl::UnavailableError(absl::StrCat("'", host, "': no address"));
  return std::vector<std::string>(addresses.begin(), addresses.end());
}

absl::StatusOr<std::unique_ptr<Membership>> Membership::Start(const MembershipOptions& options,
                                                              SetMembers set_members,
                                                              RouterMetrics* metrics,
                                                              Resolve resolve) {
  std::unique_ptr<Membership> membership(new Membership());
  membership->shared_ = std::make_shared<Shared>();
  membership->shared_->set_members = std::move(set_members);
  membership->shared_->metrics = metrics;
  if (!options.file.empty()) {
    const std::string name = absl::StrCat("--workers-file=", options.file);
    membership->file_ = std::make_unique<WatchedFile>(
        options.file, kFileBytesMax, kFileInterval,
        [name, shared = membership->shared_.get()](const FileReading& reading) {
          Take(shared, MemberSource::kFile, name, ListOf(reading)).IgnoreError();
        });
    const absl::Status taken = Take(membership->shared_.get(), MemberSource::kFile, name,
                                    ListOf(membership->file_->first()));
    if (!taken.ok()) return absl::InvalidArgumentError(absl::StrCat(name, ": ", taken.message()));
  }
  if (!options.dns.empty()) {
    std::thread([shared = membership->shared_, options, resolve = std::move(resolve)] {
      WatchName(shared, options, resolve);
    }).detach();
  }
  return membership;
}

Membership::~Membership() {
  file_ = nullptr;
  MutexLock lock(&shared_->mutex);
  shared_->stopping = true;
  shared_->stop.SignalAll();
}

absl::Status Membership::Take(Shared* shared, MemberSource source, const std::string& name,
                              absl::StatusOr<std::vector<std::string>> addresses) {
  // The lock is held for all of it: after the destructor's turn nobody is called.
  MutexLock lock(&shared->mutex);
  if (shared->stopping) return absl::CancelledError("stopping");
  absl::Status status = addresses.status();
  if (status.ok()) status = shared->set_members(source, *std::move(addresses));
  std::string& problem = source == MemberSource::kFile ? shared->file_problem : shared->dns_problem;
  if (!status.ok()) {
    shared->metrics->CountMemberError(source);
    if (problem != status.message()) {
      LOG(WARNING) << name << ": " << status.message() << "; the workers known before stay";
    }
  } else if (!problem.empty()) {
    LOG(INFO) << name << " is usable again";
  }
  problem = std::string(status.message());
  return status;
}

void Membership::WatchName(const std::shared_ptr<Shared>& shared, const MembershipOptions& options,
                           const Resolve& resolve) {
  const size_t colon = options.dns.rfind(':');
  std::string host = options.dns.substr(0, colon);
  const std::string port = options.dns.substr(colon);
  if (host.front() == '[') host = host.substr(1, host.size() - 2);
  const auto interval = std::chrono::seconds(options.dns_interval_s);
  while (true) {
    const auto next = std::chrono::steady_clock::now() + interval;
    absl::StatusOr<std::vector<std::string>> addresses = resolve(host);
    if (addresses.ok()) {
      for (std::string& address : *addresses) address += port;
    }
    Take(shared.get(), MemberSource::kDns, absl::StrCat("--workers-dns=", options.dns),
         std::move(addresses))
        .IgnoreError();
    MutexLock lock(&shared->mutex);
    while (!shared->stopping && std::chrono::steady_clock::now() < next) {
      shared->stop.WaitFor(&shared->mutex, std::chrono::duration_cast<std::chrono::milliseconds>(
                                               next - std::chrono::steady_clock::now()) +
                                               std::chrono::milliseconds(1));
    }
    if (shared->stopping) return;
  }
}

}  // namespace glm::router
