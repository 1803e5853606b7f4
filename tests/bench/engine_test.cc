#include "bench/engine_bench.h"

#include <gtest/gtest.h>

#include <string>

namespace glm::bench {
namespace {

EngineBenchOptions Tiny(const char* model) {
  EngineBenchOptions options;
  options.model = std::string(GLM_SOURCE_DIR) + "/tests/golden/" + model;
  options.batch = {1, 3};
  options.context = 20;
  options.steps = 8;
  return options;
}

/// The number behind the name's first place after `from`.
double NumberOf(const std::string& text, const std::string& name, size_t from) {
  const size_t at = text.find("\"" + name + "\": ", from);
  EXPECT_NE(at, std::string::npos) << name << " in " << text;
  return std::stod(text.substr(at + name.size() + 4));
}

TEST(EngineBenchTest, TellsOfStepsAndTheGapsBetweenThem) {
  testing::internal::CaptureStdout();
  const absl::Status status = RunEngineBench(Tiny("glm4_moe/air"));
  const std::string out = testing::internal::GetCapturedStdout();
  ASSERT_TRUE(status.ok()) << status;
  for (const int sequences : {1, 3}) {
    const size_t at = out.find("\"sequences\": " + std::to_string(sequences) + ",");
    ASSERT_NE(at, std::string::npos) << out;
    EXPECT_GE(NumberOf(out, "steps", at), 8);
    EXPECT_GT(NumberOf(out, "ms", at), 0);
    EXPECT_GT(NumberOf(out, "tokens_per_s", at), 0);
    EXPECT_GE(NumberOf(out, "idle_us", at), 0);
    // Every step of these has one before it that left work.
    double gaps = 0;
    for (const char* bound : {"20", "50", "100", "200", "500", "1000", "10000", "more"}) {
      gaps += NumberOf(out, bound, at);
    }
    EXPECT_EQ(gaps, NumberOf(out, "steps", at)) << out;
  }
}

TEST(EngineBenchTest, RefusesWhatItCannotRun) {
  EngineBenchOptions options = Tiny("glm4_moe/air");
  options.batch = {};
  EXPECT_FALSE(options.Validate().ok());
  options = Tiny("glm4_moe/air");
  options.drafts = 6;
  EXPECT_FALSE(options.Validate().ok());
  options = Tiny("no_such_model");
  ASSERT_TRUE(options.Validate().ok());
  EXPECT_FALSE(RunEngineBench(options).ok());
}

}  // namespace
}  // namespace glm::bench
