#include "router/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>

namespace glm::router {
namespace {

using ::testing::HasSubstr;

RouterOptions Good() {
  RouterOptions options;
  options.model_dir = "/models/tiny";
  options.fleet.workers = {"127.0.0.1:50051", "[::1]:50052"};
  return options;
}

TEST(OptionsTest, DefaultsAreValid) { EXPECT_TRUE(Good().Validate().ok()) << Good().Validate(); }

TEST(OptionsTest, AnySourceOfWorkersWillDo) {
  RouterOptions options = Good();
  options.fleet.workers.clear();
  options.membership.file = "workers";
  EXPECT_TRUE(options.Validate().ok()) << options.Validate();
  options.membership = {};
  options.membership.dns = "workers.local:50051";
  EXPECT_TRUE(options.Validate().ok()) << options.Validate();
  options.membership = {};
  options.membership.registry_listen = "0.0.0.0:50049";
  options.fleet.token_file = "token";
  EXPECT_TRUE(options.Validate().ok()) << options.Validate();
}

TEST(OptionsTest, ModelNameIsTheFoldersUnlessItIsGiven) {
  RouterOptions options = Good();
  EXPECT_EQ(options.ModelName(), "tiny");
  options.model_dir = "/models/tiny//";
  EXPECT_EQ(options.ModelName(), "tiny");
  options.model_dir = "tiny";
  EXPECT_EQ(options.ModelName(), "tiny");
  options.served_model_name = "glm";
  EXPECT_EQ(options.ModelName(), "glm");
}

struct BadCase {
  std::string name;
  std::function<void(RouterOptions*)> spoil;
  std::string says;
};

class BadOptionsTest : public ::testing::TestWithParam<BadCase> {};

TEST_P(BadOptionsTest, NamesFlagValueAndLimit) {
  RouterOptions options = Good();
  GetParam().spoil(&options);
  const absl::Status status = options.Validate();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().says));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, BadOptionsTest,
    ::testing::Values(
        BadCase{"NoModel", [](RouterOptions* o) { o->model_dir = ""; }, "--model=''"},
        BadCase{"NoWorkers", [](RouterOptions* o) { o->fleet.workers.clear(); },
                "--workers, --workers-file, --workers-dns or --registry-listen must say"},
        BadCase{"TooManyWorkers", [](RouterOptions* o) { o->fleet.workers.resize(1025, "a:1"); },
                "--workers (how many)=1025 must be from 0 to 1024"},
        BadCase{"DnsWithoutPort", [](RouterOptions* o) { o->membership.dns = "workers"; },
                "--workers-dns='workers' must be host:port"},
        BadCase{"DnsOfASocket", [](RouterOptions* o) { o->membership.dns = "unix:/w"; },
                "--workers-dns='unix:/w' must be host:port"},
        BadCase{"OpenRegistry", [](RouterOptions* o) { o->membership.registry_listen = "h:1"; },
                "--registry-listen needs --worker-token-file or --registry-tls-client-ca"},
        BadCase{"NegativeGrace", [](RouterOptions* o) { o->membership.registration_grace_s = -1; },
                "--registration-grace-s=-1 must be from 0"},
        BadCase{"WorkerWithoutPort", [](RouterOptions* o) { o->fleet.workers = {"host"}; },
                "--workers='host' must be host:port"},
        BadCase{"WorkerPortZero", [](RouterOptions* o) { o->fleet.workers = {"host:0"}; },
                "from 1 to 65535"},
        BadCase{"WorkerPortTooBig", [](RouterOptions* o) { o->fleet.workers = {"host:65536"}; },
                "--workers='host:65536'"},
        BadCase{"WorkerTwice",
                [](RouterOptions* o) {
                  o->fleet.workers = {"a:1", "a:1"};
                },
                "names 'a:1' twice"},
        BadCase{"BackoffUpsideDown", [](RouterOptions* o) { o->fleet.backoff_max_ms = 50; },
                "--backoff-max-ms=50 must be from 100 to"},
        BadCase{"JitterOfOne", [](RouterOptions* o) { o->fleet.backoff_jitter = 1; },
                "--backoff-jitter=1 must be at least 0 and below 1"},
        BadCase{"JitterNan",
                [](RouterOptions* o) {
                  o->fleet.backoff_jitter = std::numeric_limits<double>::quiet_NaN();
                },
                "--backoff-jitter=nan"},
        BadCase{"WorkerQueue", [](RouterOptions* o) { o->fleet.worker_queue_requests = -1; },
                "--worker-queue-requests=-1 must be from 0 to"},
        BadCase{"WorkerQueueTokens", [](RouterOptions* o) { o->fleet.worker_queue_tokens = 0; },
                "--worker-queue-tokens=0 must be from 1 to"},
        BadCase{"NoErrors", [](RouterOptions* o) { o->fleet.eject_errors = 0; },
                "--eject-errors=0 must be from 1 to 1000"},
        BadCase{"EjectionUpsideDown", [](RouterOptions* o) { o->fleet.eject_max_ms = 999; },
                "--eject-max-ms=999 must be from 1000 to"},
        BadCase{"NoRequests", [](RouterOptions* o) { o->admit.requests_max = 0; },
                "--requests-max=0 must be from 1 to"},
        BadCase{"NegativeQueue", [](RouterOptions* o) { o->admit.queue_requests_max = -1; },
                "--queue-requests-max=-1 must be from 0 to"},
        BadCase{"QueueTokens", [](RouterOptions* o) { o->admit.queue_tokens_max = 0; },
                "--queue-tokens-max=0 must be from 1 to"},
        BadCase{"NoShare", [](RouterOptions* o) { o->admit.queue_tenant_share = 0; },
                "--queue-tenant-share=0 must be above 0 and at most 1"},
        BadCase{"QueueTimeout", [](RouterOptions* o) { o->admit.queue_timeout_ms = -1; },
                "--queue-timeout-ms=-1 must be from 0 to 3600000"},
        BadCase{"QueueWait", [](RouterOptions* o) { o->admit.queue_wait_max_ms = 0; },
                "--queue-wait-max-ms=0 must be from 1 to 3600000"},
        BadCase{"NoTenants", [](RouterOptions* o) { o->admit.tenants_max = 0; },
                "--tenants-max=0 must be from 1 to"},
        BadCase{"TenantHeader", [](RouterOptions* o) { o->admit.tenant_header = "X-Tenant"; },
                "--tenant-header='X-Tenant' must be at most 256 lower-case letters"},
        BadCase{"RetryPercent", [](RouterOptions* o) { o->admit.retry_percent = 101; },
                "--retry-percent=101 must be from 0 to 100"},
        BadCase{"RetryBurst", [](RouterOptions* o) { o->admit.retry_burst = -1; },
                "--retry-burst=-1 must be from 0 to"},
        BadCase{"PingsTooOften", [](RouterOptions* o) { o->fleet.keepalive_ms = 999; },
                "--keepalive-ms=999 must be from 1000 to"},
        BadCase{"CertWithoutKey",
                [](RouterOptions* o) {
                  o->fleet.tls.ca = "a";
                  o->fleet.tls.cert = "c";
                },
                "--worker-tls-cert='c' needs --worker-tls-key too"},
        BadCase{"ClientCaWithoutCert", [](RouterOptions* o) { o->grpc.tls.client_ca = "a"; },
                "--grpc-tls-client-ca='a' needs --grpc-tls-cert too"},
        BadCase{"NegativeSettle", [](RouterOptions* o) { o->settle_s = -1; },
                "--settle-s=-1 must be from 0 to 86400"},
        BadCase{"NoLoops", [](RouterOptions* o) { o->loop_threads = 0; },
                "--loop-threads=0 must be from 1 to 256"},
        BadCase{"NegativePort", [](RouterOptions* o) { o->http.port = -1; },
                "--port=-1 must be from 0 to 65535"},
        BadCase{"NoAttempts", [](RouterOptions* o) { o->exchange.attempts_max = 0; },
                "--attempts-max=0 must be from 1 to 100"},
        BadCase{"SmallBody", [](RouterOptions* o) { o->http.body_bytes_max = 10; },
                "--http-body-bytes-max=10 must be from 1024"},
        BadCase{"GrpcAddress", [](RouterOptions* o) { o->grpc.listen = ":7"; },
                "--grpc-listen=':7' must be host:port"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace glm::router
