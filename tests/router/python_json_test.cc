#include "router/text/python_json.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

namespace glm::router {
namespace {

using Json = nlohmann::ordered_json;

std::string Written(const Json& value) {
  std::string out;
  AppendPythonJson(value, &out);
  return out;
}

// The right sides are Python's json.dumps(json.loads(...), ensure_ascii=False).
TEST(PythonJsonTest, WritesAsPythonDoes) {
  for (const auto& [given, expected] : std::vector<std::pair<const char*, const char*>>{
           {"null", "null"},
           {"true", "true"},
           {"false", "false"},
           {"-0", "0"},
           {"18446744073709551615", "18446744073709551615"},
           {"-9223372036854775808", "-9223372036854775808"},
           {"-0.0", "-0.0"},
           {"1.0", "1.0"},
           {"1e2", "100.0"},
           {"0.1", "0.1"},
           {"1234.5", "1234.5"},
           {"0.0001", "0.0001"},
           {"0.00012", "0.00012"},
           {"0.00001", "1e-05"},
           {"1.5e-7", "1.5e-07"},
           {"1e15", "1000000000000000.0"},
           {"1.2e15", "1200000000000000.0"},
           {"1e16", "1e+16"},
           {"12e22", "1.2e+23"},
           {"1e100", "1e+100"},
           {"5e-324", "5e-324"},
           {"0.30000000000000004", "0.30000000000000004"},
           {"9007199254740993.0", "9007199254740992.0"},
           {"[]", "[]"},
           {"{}", "{}"},
           {"[1,[],{}]", "[1, [], {}]"},
           {R"({"b":1,"a":[true,null]})", R"({"b": 1, "a": [true, null]})"},
           {R"("\u0001\u001f\b\f\n\r\t\"\\\/")", R"("\u0001\u001f\b\f\n\r\t\"\\/")"},
           {R"("é<&>\u007f\u2028")", "\"é<&>\x7f\u2028\""},
           {R"({"\n":""})", R"({"\n": ""})"},
       }) {
    EXPECT_EQ(Written(Json::parse(given)), expected) << given;
  }
  EXPECT_EQ(Written(std::nan("")), "NaN");
  EXPECT_EQ(Written(-INFINITY), "-Infinity");
}

TEST(PythonJsonTest, AnyDepth) {
  constexpr int kDepth = 200'000;
  const std::string text = std::string(kDepth, '[') + std::string(kDepth, ']');
  EXPECT_EQ(Written(Json::parse(text)), text);
}

}  // namespace
}  // namespace glm::router
