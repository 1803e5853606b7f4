// TLS over real sockets, with certificates that the users' script makes.
#include "proto/credentials.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>

#include "tests/proto/echo_server.h"
#include "tests/support/temp_folder.h"
#include "tests/support/test_certificates.h"

namespace glm {
namespace {

using ::testing::HasSubstr;

class CredentialsTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new test::TempFolder();
    test::MakeCertificates(folder_->path(), "worker=localhost,127.0.0.1 router=router.test");
    other_ = new test::TempFolder();
    test::MakeCertificates(other_->path(), "worker=localhost,127.0.0.1 router=router.test");
  }
  static void TearDownTestSuite() {
    delete folder_;
    delete other_;
  }
  static std::string Path(const std::string& name) { return folder_->path() + "/" + name; }
  static std::string Other(const std::string& name) { return other_->path() + "/" + name; }
  static ServerTls Server(bool mutual) {
    return {Path("worker.pem"), Path("worker.key"), mutual ? Path("ca.pem") : ""};
  }

  static std::unique_ptr<test::EchoServer> Listen(const ServerTls& tls) {
    const auto credentials = MakeCredentials("tls", tls);
    EXPECT_TRUE(credentials.ok()) << credentials.status();
    return std::make_unique<test::EchoServer>(*credentials, ServerLimits());
  }
  /// Whether a stream comes about and a frame goes there and back; else `why` says why not.
  static bool Reaches(const test::EchoServer& server, const ClientTls& tls,
                      std::string* why = nullptr) {
    const auto credentials = MakeCredentials("worker-tls", tls);
    EXPECT_TRUE(credentials.ok()) << credentials.status();
    ChannelLimits limits;
    limits.tls_name = tls.name;
    test::EchoStream stream(
        grpc::CreateCustomChannel(server.address(), *credentials, MakeChannelArguments(limits)));
    if (stream.Echo()) return true;
    const grpc::Status status = stream.Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
    if (why != nullptr) *why = status.error_message();
    return false;
  }

  static test::TempFolder* folder_;
  static test::TempFolder* other_;
};

test::TempFolder* CredentialsTest::folder_ = nullptr;
test::TempFolder* CredentialsTest::other_ = nullptr;

TEST_F(CredentialsTest, TlsChecksTheServer) {
  const auto server = Listen(Server(/*mutual=*/false));
  EXPECT_TRUE(Reaches(*server, {.ca = Path("ca.pem")}));
  EXPECT_TRUE(Reaches(*server, {.ca = Path("ca.pem"), .name = "localhost"}));
  EXPECT_FALSE(Reaches(*server, {.ca = Path("ca.pem"), .name = "router.test"})) << "another's name";
  EXPECT_FALSE(Reaches(*server, {.ca = Other("ca.pem")})) << "another's root";
  EXPECT_FALSE(Reaches(*server, {})) << "without TLS";
}

TEST_F(CredentialsTest, MutualTlsChecksTheClientToo) {
  const auto server = Listen(Server(/*mutual=*/true));
  EXPECT_TRUE(Reaches(
      *server, {.ca = Path("ca.pem"), .cert = Path("router.pem"), .key = Path("router.key")}));
  EXPECT_FALSE(Reaches(*server, {.ca = Path("ca.pem")})) << "no certificate";
  EXPECT_FALSE(Reaches(
      *server, {.ca = Path("ca.pem"), .cert = Other("router.pem"), .key = Other("router.key")}))
      << "another's certificate";
}

TEST_F(CredentialsTest, PlainReachesPlainAlone) {
  const auto server = Listen({});
  EXPECT_TRUE(Reaches(*server, {}));
  EXPECT_FALSE(Reaches(*server, {.ca = Path("ca.pem")}));
}

TEST_F(CredentialsTest, NewFilesAreTakenWithoutARestart) {
  const test::TempFolder live;
  const auto install = [&](const std::string& from) {
    for (const char* name : {"/worker.key", "/worker.pem"}) {
      std::filesystem::copy_file(from + name, live.path() + name + ".new");
      std::filesystem::rename(live.path() + name + ".new", live.path() + name);
    }
  };
  install(folder_->path());
  const auto server = Listen({live.path() + "/worker.pem", live.path() + "/worker.key", ""});
  ASSERT_TRUE(Reaches(*server, {.ca = Path("ca.pem")}));
  const auto channel = grpc::CreateCustomChannel(
      server->address(), *MakeCredentials("worker-tls", ClientTls{.ca = Path("ca.pem")}),
      MakeChannelArguments({}));
  test::EchoStream open(channel);
  ASSERT_TRUE(open.Echo());

  install(other_->path());
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!Reaches(*server, {.ca = Other("ca.pem")})) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  EXPECT_FALSE(Reaches(*server, {.ca = Path("ca.pem")}));
  EXPECT_TRUE(open.Echo()) << "what is open goes on";
}

TEST_F(CredentialsTest, BadFilesAreRefusedByName) {
  std::ofstream(Path("empty.pem")) << "nothing\n";
  const auto message = [](const auto& tls) {
    return std::string(MakeCredentials("tls", tls).status().message());
  };
  EXPECT_THAT(message(ServerTls{Path("none.pem"), Path("worker.key"), ""}),
              HasSubstr("--tls-cert='" + Path("none.pem")));
  EXPECT_THAT(message(ServerTls{Path("empty.pem"), Path("worker.key"), ""}),
              HasSubstr("no certificate in PEM form"));
  EXPECT_THAT(message(ServerTls{Path("worker.pem"), Path("empty.pem"), ""}),
              HasSubstr("--tls-key='" + Path("empty.pem") + "': no private key"));
  EXPECT_THAT(message(ServerTls{Path("worker.pem"), Path("router.key"), ""}),
              HasSubstr("it is not the key of --tls-cert"));
  EXPECT_THAT(message(ServerTls{Path("worker.pem"), Path("worker.key"), Path("empty.pem")}),
              HasSubstr("--tls-client-ca='"));
  EXPECT_THAT(message(ClientTls{.ca = Path("empty.pem")}), HasSubstr("--tls-ca='"));
  EXPECT_THAT(message(ClientTls{
                  .ca = Path("ca.pem"), .cert = Path("router.pem"), .key = Path("worker.key")}),
              HasSubstr("--tls-key='"));
}

TEST(CheckTls, FlagsGoTogether) {
  const auto message = [](const auto& tls) {
    OptionChecks checks;
    CheckTls("tls", tls, &checks);
    return std::string(checks.status().message());
  };
  EXPECT_EQ(message(ServerTls{}), "");
  EXPECT_EQ(message(ServerTls{"c", "k", "a"}), "");
  EXPECT_EQ(message(ServerTls{"c", "", ""}), "--tls-cert='c' needs --tls-key too");
  EXPECT_EQ(message(ServerTls{"", "k", ""}), "--tls-key='k' needs --tls-cert too");
  EXPECT_EQ(message(ServerTls{"", "", "a"}), "--tls-client-ca='a' needs --tls-cert too");
  EXPECT_EQ(message(ClientTls{.ca = "a", .cert = "c", .key = "k", .name = "n"}), "");
  EXPECT_EQ(message(ClientTls{.cert = "c", .key = "k"}), "--tls-cert='c' needs --tls-ca too");
  EXPECT_EQ(message(ClientTls{.ca = "a", .cert = "c"}), "--tls-cert='c' needs --tls-key too");
  EXPECT_EQ(message(ClientTls{.name = "n"}), "--tls-name='n' needs --tls-ca too");
}

}  // namespace
}  // namespace glm
