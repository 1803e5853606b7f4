#include "router/front/http.h"

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/steady_timer.hpp>
#include <future>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "router/front/http_connection.h"

namespace glm::router {
namespace {

using boost::asio::ip::tcp;
using boost::system::error_code;

/// After an accept that failed, as when no descriptor is free.
constexpr std::chrono::milliseconds kAcceptRetry{100};

}  // namespace

class HttpServer::Listener {
 public:
  Listener(const HttpOptions& options, HttpRoutes routes, HttpErrorBody error_body, LoopPool* loops,
           RouterMetrics* metrics)
      : loops_(loops),
        lanes_(loops->size()),
        acceptor_(loops->at(0).io_context()),
        retry_timer_(loops->at(0).io_context()) {
    shared_.options = options;
    shared_.routes = std::move(routes);
    shared_.error_body = std::move(error_body);
    shared_.metrics = metrics;
    for (int32_t i = 0; i < loops->size(); ++i) lanes_[i].loop = &loops->at(i);
  }

  absl::Status Start();
  void Drain(std::chrono::milliseconds wait);
  int32_t port() const { return port_; }

 private:
  absl::Status Listen(const tcp::endpoint& endpoint);
  void Accept();
  void OnAccepted(HttpLane* lane, tcp::socket socket);
  void TurnAway(tcp::socket socket);

  HttpShared shared_;
  LoopPool* const loops_;
  std::vector<HttpLane> lanes_;

  // Loop 0's own, once started.
  tcp::acceptor acceptor_;
  boost::asio::steady_timer retry_timer_;

  int32_t port_ = 0;
  bool started_ = false;
  bool drained_ = false;
};

absl::Status HttpServer::Listener::Start() {
  const std::string& host = shared_.options.host;
  error_code error;
  tcp::resolver resolver(loops_->at(0).io_context());
  const tcp::resolver::results_type found =
      resolver.resolve(host, std::to_string(shared_.options.port),
                       tcp::resolver::passive | tcp::resolver::numeric_service, error);
  if (error || found.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot listen on host '", host, "': ", error.message()));
  }
  if (absl::Status status = Listen(found.begin()->endpoint()); !status.ok()) return status;
  started_ = true;
  loops_->at(0).Run([this] { Accept(); });
  return absl::OkStatus();
}

absl::Status HttpServer::Listener::Listen(const tcp::endpoint& endpoint) {
  error_code error;
  const auto step = [&](auto&& operation) {
    if (!error) operation();
  };
  step([&] { acceptor_.open(endpoint.protocol(), error); });
  step([&] { acceptor_.set_option(tcp::acceptor::reuse_address(true), error); });
  if (endpoint.address().is_v6()) {
    step([&] { acceptor_.set_option(boost::asio::ip::v6_only(false), error); });
  }
  step([&] { acceptor_.bind(endpoint, error); });
  step([&] { acceptor_.listen(tcp::acceptor::max_listen_connections, error); });
  tcp::endpoint local;
  step([&] { local = acceptor_.local_endpoint(error); });
  if (error) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", shared_.options.host, ":",
                                               shared_.options.port, ": ", error.message()));
  }
  port_ = local.port();
  return absl::OkStatus();
}

void HttpServer::Listener::Accept() {
  if (shared_.draining) return;
  HttpLane* const lane = &lanes_[loops_->Next().index()];
  acceptor_.async_accept(lane->loop->io_context(),
                         [this, lane](const error_code& error, tcp::socket socket) {
                           if (shared_.draining) return;
                           if (!error) {
                             OnAccepted(lane, std::move(socket));
                             return Accept();
                           }
                           LOG(WARNING) << "cannot accept a connection: " << error.message();
                           retry_timer_.expires_after(kAcceptRetry);
                           retry_timer_.async_wait([this](const error_code& cancelled) {
                             if (!cancelled) Accept();
                           });
                         });
}

void HttpServer::Listener::OnAccepted(HttpLane* lane, tcp::socket socket) {
  if (shared_.connections_open >= shared_.options.connections_max) {
    return TurnAway(std::move(socket));
  }
  ++shared_.connections_open;
  shared_.metrics->AddConnections(1);
  lane->loop->Post([this, lane, socket = std::move(socket)]() mutable {
    const auto connection = std::make_shared<HttpConnection>(&shared_, lane, std::move(socket));
    lane->connections.insert(connection);
    if (shared_.draining) return connection->Close();
    connection->Start();
  });
}

void HttpServer::Listener::TurnAway(tcp::socket socket) {
  const std::string body = shared_.error_body(
      503, absl::StrCat("all ", shared_.options.connections_max, " connections are taken"));
  const std::string reply = absl::StrCat(
      "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: ",
      body.size(), "\r\nRetry-After: 1\r\nConnection: close\r\n\r\n", body);
  error_code ignored;
  socket.non_blocking(true, ignored);
  socket.write_some(boost::asio::buffer(reply), ignored);
  socket.shutdown(tcp::socket::shutdown_send, ignored);
}

void HttpServer::Listener::Drain(std::chrono::milliseconds wait) {
  if (!started_ || drained_) return;
  drained_ = true;
  const auto deadline = std::chrono::steady_clock::now() + wait;
  shared_.draining = true;
  loops_->at(0).Run([this] {
    error_code ignored;
    acceptor_.close(ignored);
    retry_timer_.cancel(ignored);
  });
  // The aborted accept has been queued by now; when this returns it has run.
  loops_->at(0).Run([] {});

  std::vector<std::promise<void>> emptied(lanes_.size());
  for (size_t i = 0; i < lanes_.size(); ++i) {
    HttpLane& lane = lanes_[i];
    lane.loop->Run([&lane, &empty = emptied[i]] {
      const auto connections = lane.connections;
      for (const auto& connection : connections) connection->BeginDrain();
      if (lane.connections.empty()) return empty.set_value();
      lane.on_empty = [&empty] { empty.set_value(); };
    });
  }
  for (std::promise<void>& empty : emptied) empty.get_future().wait_until(deadline);
  for (HttpLane& lane : lanes_) {
    lane.loop->Run([&lane] {
      lane.on_empty = nullptr;
      const auto connections = lane.connections;
      for (const auto& connection : connections) connection->Close();
    });
  }
}

HttpServer::HttpServer(const HttpOptions& options, HttpRoutes routes, HttpErrorBody error_body,
                       LoopPool* loops, RouterMetrics* metrics)
    : listener_(std::make_unique<Listener>(options, std::move(routes), std::move(error_body), loops,
                                           metrics)) {}

HttpServer::~HttpServer() { listener_->Drain(std::chrono::milliseconds(0)); }

absl::Status HttpServer::Start() { return listener_->Start(); }

int32_t HttpServer::port() const { return listener_->port(); }

void HttpServer::Drain(std::chrono::milliseconds wait) { listener_->Drain(wait); }

}  // namespace glm::router
