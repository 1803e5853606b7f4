#include "tests/support/faulty_wire.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <utility>

namespace glm::tests {
namespace {

constexpr size_t kPacketMax = 65536;
constexpr size_t kWaitingMax = 100'000;

bool Shell(const std::string& command) {
  return system((command + " >/dev/null 2>&1").c_str()) == 0;
}

int OpenTun(const std::string& name) {
  const int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (device < 0) return -1;
  ifreq request{};
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  strncpy(request.ifr_name, name.c_str(), IFNAMSIZ - 1);
  if (ioctl(device, TUNSETIFF, &request) == 0) return device;
  close(device);
  return -1;
}

/// The Internet checksum of `bytes`, an even number of them, on top of `sum`.
uint16_t Checksum(const void* bytes, size_t count, uint32_t sum = 0) {
  const auto* at = static_cast<const uint8_t*>(bytes);
  for (size_t i = 0; i + 1 < count; i += 2) {
    uint16_t word = 0;
    memcpy(&word, at + i, sizeof(word));
    sum += word;
  }
  while (sum >> 16 != 0) sum = (sum & 0xFFFF) + (sum >> 16);
  return static_cast<uint16_t>(~sum);
}

/// A TCP reset without data; addresses and ports as in the packet's own header.
std::vector<uint8_t> MakeReset(uint32_t from, uint32_t to, uint16_t from_port, uint16_t to_port,
                               uint32_t sequence) {
  struct {
    iphdr ip;
    tcphdr tcp;
  } packet{};
  packet.ip.version = 4;
  packet.ip.ihl = 5;
  packet.ip.ttl = 64;
  packet.ip.protocol = IPPROTO_TCP;
  packet.ip.tot_len = htons(sizeof(packet));
  packet.ip.saddr = from;
  packet.ip.daddr = to;
  packet.ip.check = Checksum(&packet.ip, sizeof(packet.ip));
  packet.tcp.source = from_port;
  packet.tcp.dest = to_port;
  packet.tcp.seq = sequence;
  packet.tcp.doff = 5;
  packet.tcp.rst = 1;
  struct {
    uint32_t from, to;
    uint8_t zero, protocol;
    uint16_t length;
  } pseudo{from, to, 0, IPPROTO_TCP, htons(sizeof(packet.tcp))};
  const uint32_t begin = static_cast<uint16_t>(~Checksum(&pseudo, sizeof(pseudo)));
  packet.tcp.check = Checksum(&packet.tcp, sizeof(packet.tcp), begin);
  const auto* bytes = reinterpret_cast<const uint8_t*>(&packet);
  return {bytes, bytes + sizeof(packet)};
}

}  // namespace

std::string FaultyWire::Unavailable() {
  if (geteuid() != 0) return "network namespaces need root";
  if (access("/dev/net/tun", R_OK | W_OK) != 0) return "there is no /dev/net/tun";
  const std::string name = "glmprobe" + std::to_string(getpid());
  if (!Shell("ip netns add " + name)) return "`ip netns add` does not work here";
  const bool has_tun = Shell("ip -n " + name + " tuntap add dev probe mode tun");
  Shell("ip netns del " + name);
  return has_tun ? "" : "no tun device can be made here";
}

FaultyWire::FaultyWire(int number)
    : number_(number), name_("glm" + std::to_string(getpid()) + "-" + std::to_string(number)) {
  EXPECT_TRUE(Shell("ip netns add " + name_));
  own_namespace_ = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
  inner_namespace_ = open(("/var/run/netns/" + name_).c_str(), O_RDONLY | O_CLOEXEC);
  outer_ = OpenTun("glmwire" + std::to_string(number));
  Inside([&] { inner_ = OpenTun("inner"); });
  EXPECT_TRUE(outer_ >= 0 && inner_ >= 0) << strerror(errno);
  const std::string outer_name = "glmwire" + std::to_string(number);
  EXPECT_TRUE(Shell("ip addr add " + Address(1) + "/30 dev " + outer_name));
  EXPECT_TRUE(Shell("ip link set " + outer_name + " up"));
  EXPECT_TRUE(Shell("ip -n " + name_ + " addr add " + Address(2) + "/30 dev inner"));
  EXPECT_TRUE(Shell("ip -n " + name_ + " link set inner up"));
  EXPECT_TRUE(Shell("ip -n " + name_ + " link set lo up"));
  carrier_ = std::thread([this] { Carry(); });
}

FaultyWire::~FaultyWire() {
  stopping_ = true;
  carrier_.join();
  for (const int descriptor : {outer_, inner_, own_namespace_, inner_namespace_}) {
    if (descriptor >= 0) close(descriptor);
  }
  Shell("ip netns del " + name_);
}

std::string FaultyWire::Address(int end) const {
  return "10.213." + std::to_string(number_) + "." + std::to_string(end);
}

void FaultyWire::Inside(const std::function<void()>& fn) {
  ASSERT_EQ(setns(inner_namespace_, CLONE_NEWNET), 0) << strerror(errno);
  fn();
  ASSERT_EQ(setns(own_namespace_, CLONE_NEWNET), 0) << strerror(errno);
}

void FaultyWire::Set(const WireFaults& faults) {
  const std::lock_guard<std::mutex> lock(mutex_);
  faults_ = faults;
}

void FaultyWire::Carry() {
  while (!stopping_) {
    pollfd ends[2] = {{outer_, POLLIN, 0}, {inner_, POLLIN, 0}};
    poll(ends, 2, waiting_.empty() ? 20 : 1);
    Take(outer_, inner_, true);
    Take(inner_, outer_, false);
    const auto now = std::chrono::steady_clock::now();
    while (!waiting_.empty() && waiting_.front().due <= now) {
      const Packet& packet = waiting_.front();
      if (write(packet.to, packet.bytes.data(), packet.bytes.size()) >= 0) ++packets_;
      waiting_.pop_front();
    }
  }
}

void FaultyWire::Take(int from, int to, bool inwards) {
  uint8_t bytes[kPacketMax];
  const auto now = std::chrono::steady_clock::now();
  while (true) {
    const ssize_t size = read(from, bytes, sizeof(bytes));
    if (size <= 0) return;
    const WireFaults faults = [this] {
      const std::lock_guard<std::mutex> lock(mutex_);
      return faults_;
    }();
    if (inwards ? faults.drop_in : faults.drop_out) continue;
    if (static_cast<int>(random_() % 100) < faults.loss_percent) continue;
    if (waiting_.size() >= kWaitingMax) continue;
    iphdr ip;
    memcpy(&ip, bytes, sizeof(ip));
    if (faults.reset && ip.version == 4 && ip.protocol == IPPROTO_TCP) {
      tcphdr tcp;
      memcpy(&tcp, bytes + ip.ihl * 4, sizeof(tcp));
      if (tcp.rst != 0 || tcp.ack == 0) continue;
      // Each end believes a reset that stands exactly where it expects the next byte.
      waiting_.push_back(
          {now, from, MakeReset(ip.daddr, ip.saddr, tcp.dest, tcp.source, tcp.ack_seq)});
      waiting_.push_back({now, to, MakeReset(ip.saddr, ip.daddr, tcp.source, tcp.dest, tcp.seq)});
      continue;
    }
    // In order, also when the delay changes.
    auto due = now + std::chrono::milliseconds(faults.delay_ms);
    if (!waiting_.empty()) due = std::max(due, waiting_.back().due);
    waiting_.push_back({due, to, {bytes, bytes + size}});
  }
}

}  // namespace glm::tests
