#include "bench/scripted/scripted_worker.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "bench/scripted/scripted_cache.h"
#include "proto/worker.grpc.pb.h"

namespace glm::bench {
namespace {

namespace wire = ::glmserve::worker::v1;

std::vector<int32_t> Prompt(int32_t tokens, int32_t first = 10) {
  std::vector<int32_t> ids(static_cast<size_t>(tokens));
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

/// A router's end of one session, read frame by frame.
class Router {
 public:
  explicit Router(const std::string& address)
      : stub_(wire::Worker::NewStub(
            grpc::CreateChannel(address, grpc::InsecureChannelCredentials()))) {
    call_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    stream_ = stub_->Session(&call_);
    wire::RouterFrame hello;
    hello.mutable_hello()->set_protocol_version(1);
    EXPECT_TRUE(stream_->Write(hello));
    const wire::WorkerFrame frame = Next();
    EXPECT_TRUE(frame.has_welcome());
    welcome = frame.welcome();
  }
  ~Router() { call_.TryCancel(); }

  /// The next frame; one without any content at the stream's end.
  wire::WorkerFrame Next() {
    wire::WorkerFrame frame;
    if (!stream_->Read(&frame)) frame.Clear();
    return frame;
  }
  grpc::Status Finish() { return stream_->Finish(); }

  void Submit(uint64_t id, const std::vector<int32_t>& prompt, uint32_t max_tokens,
              bool logprobs = false) {
    wire::RouterFrame frame;
    wire::Submit* submit = frame.mutable_submit();
    submit->set_request_id(id);
    for (const int32_t token : prompt) submit->add_prompt_ids(static_cast<uint32_t>(token));
    submit->mutable_stop()->set_max_tokens(max_tokens);
    if (logprobs) submit->mutable_sampling()->set_logprobs(1);
    ASSERT_TRUE(stream_->Write(frame));
  }
  void Send(const wire::RouterFrame& frame) { ASSERT_TRUE(stream_->Write(frame)); }

  /// Reads up to the request's end: all of its tokens, and its last output.
  std::vector<int32_t> Answer(uint64_t id, wire::Output* last) {
    std::vector<int32_t> tokens;
    while (true) {
      const wire::WorkerFrame frame = Next();
      if (frame.frame_case() == wire::WorkerFrame::FRAME_NOT_SET) return tokens;
      for (const wire::Output& output : frame.step().outputs()) {
        if (output.request_id() != id) continue;
        tokens.insert(tokens.end(), output.token_ids().begin(), output.token_ids().end());
        *last = output;
        if (output.finish() != wire::FINISH_NONE) return tokens;
      }
    }
  }

  wire::Welcome welcome;

 private:
  grpc::ClientContext call_;
  std::unique_ptr<wire::Worker::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<wire::RouterFrame, wire::WorkerFrame>> stream_;
};

std::unique_ptr<ScriptedWorkers> StartWorkers(const ScriptedWorkerOptions& options = {},
                                              int32_t count = 1) {
  auto workers = ScriptedWorkers::Start(options, count);
  EXPECT_TRUE(workers.ok()) << workers.status();
  return *std::move(workers);
}

ScriptedWorkerOptions Fast() {
  ScriptedWorkerOptions options;
  options.script.tokens_per_s = 2000;
  options.script.prefill_tokens_per_s = 0;
  options.block_size = 4;
  return options;
}

TEST(ScriptedWorkerTest, AnswersWhatTheIdsBeforeSay) {
  ScriptedWorkerOptions options = Fast();
  options.eos_ids = {5, 6, 7};
  options.answer_ids_end = 40;
  const auto workers = StartWorkers(options);
  Router router(workers->address(0));
  EXPECT_EQ(router.welcome.model_name(), "scripted");
  EXPECT_NE(router.welcome.incarnation(), 0u);
  router.Submit(7, Prompt(10), 20);
  wire::Output last;
  const std::vector<int32_t> answer = router.Answer(7, &last);
  EXPECT_EQ(answer, ScriptedAnswer(Prompt(10), 20, {.begin = 3, .end = 40, .never = {5, 6, 7}}));
  EXPECT_EQ(last.finish(), wire::FINISH_LENGTH);
  EXPECT_EQ(last.prompt_tokens(), 10u);
  // Who goes on elsewhere comes to the same end.
  std::vector<int32_t> so_far = Prompt(10);
  so_far.insert(so_far.end(), answer.begin(), answer.begin() + 8);
  router.Submit(8, so_far, 12);
  EXPECT_EQ(router.Answer(8, &last), std::vector<int32_t>(answer.begin() + 8, answer.end()));
}

TEST(ScriptedWorkerTest, ItsPaceIsTheScripts) {
  ScriptedWorkerOptions options = Fast();
  options.script.tokens_per_s = 100;
  const auto workers = StartWorkers(options);
  Router router(workers->address(0));
  const auto begin = std::chrono::steady_clock::now();
  router.Submit(1, Prompt(10), 20);
  wire::Output last;
  EXPECT_EQ(router.Answer(1, &last).size(), 20u);
  const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
  EXPECT_GE(passed.count(), 0.19) << "20 steps of 10 ms";
}

TEST(ScriptedWorkerTest, TellsItsCacheAndItsHits) {
  const auto workers = StartWorkers(Fast());
  Router router(workers->address(0));
  wire::RouterFrame ask;
  ask.mutable_ask_cache_snapshot();
  router.Send(ask);
  wire::WorkerFrame frame = router.Next();
  ASSERT_TRUE(frame.has_cache_snapshot());
  EXPECT_TRUE(frame.cache_snapshot().first() && frame.cache_snapshot().last());
  EXPECT_EQ(frame.cache_snapshot().blocks_size(), 0);
  router.Submit(1, Prompt(10), 1);
  frame = router.Next();
  ASSERT_TRUE(frame.step().has_cache());
  EXPECT_EQ(frame.step().cache().sequence(), 1u);
  EXPECT_EQ(frame.step().cache().stored_size(), 2) << "two full blocks of 4";
  router.Submit(2, Prompt(10), 1);
  wire::Output last;
  router.Answer(2, &last);
  EXPECT_EQ(last.cached_tokens(), 8u);
  router.Send(ask);
  do {
    frame = router.Next();
  } while (!frame.has_cache_snapshot());
  EXPECT_EQ(frame.cache_snapshot().sequence(), 2u);
  EXPECT_EQ(frame.cache_snapshot().blocks_size(), 4);
  EXPECT_EQ(workers->seen(0).cached_tokens, 8);
}

TEST(ScriptedWorkerTest, ModesTakeEffectAtOnce) {
  const auto workers = StartWorkers(Fast(), 2);
  Router router(workers->address(0));
  Router other(workers->address(1));
  Script script = workers->script(0);
  script.mode = Script::Mode::kRefuse;
  workers->SetScript(0, script);
  wire::Output last;
  router.Submit(1, Prompt(10), 1);
  router.Answer(1, &last);
  EXPECT_EQ(last.finish(), wire::FINISH_REFUSED);
  EXPECT_EQ(last.error_code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
  other.Submit(1, Prompt(10), 1);
  other.Answer(1, &last);
  EXPECT_EQ(last.finish(), wire::FINISH_LENGTH) << "the other one has a script of its own";

  script.mode = Script::Mode::kStall;
  workers->SetScript(0, script);
  router.Submit(2, Prompt(10), 1);
  wire::WorkerFrame frame;
  do {
    frame = router.Next();
    EXPECT_EQ(frame.step().outputs_size(), 0);
  } while (!frame.has_heartbeat() || frame.heartbeat().step_age_ms() < 100);
  script.mode = Script::Mode::kServe;
  workers->SetScript(0, script);
  EXPECT_EQ(router.Answer(2, &last).size(), 1u);

  router.Submit(3, Prompt(10), 1, /*logprobs=*/true);
  router.Answer(3, &last);
  EXPECT_EQ(last.error_code(), static_cast<int>(absl::StatusCode::kUnimplemented));
}

TEST(ScriptedWorkerTest, ARestartBreaksSessionsAndForgets) {
  const auto workers = StartWorkers(Fast());
  auto router = std::make_unique<Router>(workers->address(0));
  wire::Output last;
  router->Submit(1, Prompt(10), 1);
  router->Answer(1, &last);
  const uint64_t incarnation = router->welcome.incarnation();
  workers->Restart(0);
  while (router->Next().frame_case() != wire::WorkerFrame::FRAME_NOT_SET) {
  }
  EXPECT_EQ(router->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  router = std::make_unique<Router>(workers->address(0));
  EXPECT_NE(router->welcome.incarnation(), incarnation);
  router->Submit(1, Prompt(10), 1);
  router->Answer(1, &last);
  EXPECT_EQ(last.cached_tokens(), 0u);
}

TEST(ScriptedWorkerTest, CancelledRequestsAreGone) {
  ScriptedWorkerOptions options = Fast();
  options.script.tokens_per_s = 50;
  const auto workers = StartWorkers(options);
  Router router(workers->address(0));
  router.Submit(1, Prompt(10), 100'000);
  while (router.Next().step().outputs_size() == 0) {
  }
  wire::RouterFrame cancel;
  cancel.mutable_cancel()->set_request_id(1);
  router.Send(cancel);
  router.Submit(2, Prompt(10), 2);
  wire::Output last;
  EXPECT_EQ(router.Answer(2, &last).size(), 2u);
  EXPECT_EQ(workers->seen(0).live, 0);
  EXPECT_EQ(workers->seen(0).cancels, 1);
}

TEST(ScriptTest, ReadFromJson) {
  Script base;
  base.tokens_per_s = 7;
  const auto script = ParseScript(R"({"mode": "hang", "slow": 4, "draining": true})", base);
  ASSERT_TRUE(script.ok());
  EXPECT_EQ(script->mode, Script::Mode::kHang);
  EXPECT_EQ(script->slow, 4);
  EXPECT_EQ(script->tokens_per_s, 7);
  EXPECT_TRUE(script->draining);
  for (const char* bad : {"", "[]", R"({"mode": "sing"})", R"({"slow": 0})", R"({"speed": 3})",
                          R"({"slow": "4"})", R"({"draining": 1})"}) {
    EXPECT_FALSE(ParseScript(bad, base).ok()) << bad;
  }
}

TEST(ScriptedCacheTest, TheLastBlocksOfOldPrefixesGoFirst) {
  ScriptedCache cache(*ParseHashKey(""), 4, 6);
  const std::vector<BlockKey> a = cache.Names("", Prompt(16));
  const std::vector<BlockKey> b = cache.Names("", Prompt(16, 500));
  ASSERT_EQ(a.size(), 4u);
  cache.Store(a);
  cache.Store(b);
  EXPECT_EQ(cache.blocks(), 6);
  EXPECT_EQ(cache.Use(a), 2) << "its last two are gone";
  EXPECT_EQ(cache.Use(b), 4);
  wire::CacheChanges changes;
  ASSERT_TRUE(cache.TakeChanges(&changes));
  EXPECT_EQ(changes.stored_size(), 10);
  Digest digest;
  for (int i = 0; i < changes.stored_size(); ++i) {
    const BlockKey block{changes.blocks(2 * i), changes.blocks(2 * i + 1)};
    if (changes.stored(i)) {
      digest.Store(block);
    } else {
      digest.Remove(block);
    }
  }
  EXPECT_EQ(changes.digest(), digest.value());
  EXPECT_FALSE(cache.TakeChanges(&changes));
  EXPECT_EQ(cache.Snapshot(4).size(), 2u);
}

}  // namespace
}  // namespace glm::bench
