// glmserve-scripted-worker: workers without an engine, for load on a router and for faults.
//
// Prints one JSON line with the addresses, then works until SIGTERM or SIGINT. Whenever the file of
// --control changes, the script in it (script.h, ParseScript) counts for all workers, or
// for the one that it names with "worker"; it is looked at ten times a second.
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "bench/scripted/scripted_worker.h"
#include "nlohmann/json.hpp"
#include "proto/base/log.h"

namespace glm::bench {
namespace {

std::string Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

/// Applies what a control file says; a bad one is told of and changes nothing.
void Obey(const std::string& text, const Script& base, ScriptedWorkers* workers) {
  nlohmann::json fields = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  int32_t first = 0;
  int32_t end = workers->count();
  if (fields.is_object() && fields.contains("worker")) {
    const nlohmann::json& worker = fields["worker"];
    if (!worker.is_number_integer() || worker.get<int64_t>() < 0 || worker.get<int64_t>() >= end) {
      LOG(ERROR) << "control: worker is " << worker.dump() << ", it must be from 0 to " << end - 1;
      return;
    }
    first = worker.get<int32_t>();
    end = first + 1;
    fields.erase("worker");
  }
  const absl::StatusOr<Script> script = ParseScript(fields.dump(), base);
  if (!script.ok()) {
    LOG(ERROR) << "control: " << script.status().message();
    return;
  }
  for (int32_t i = first; i < end; ++i) workers->SetScript(i, *script);
  LOG(INFO) << "control: " << text;
}

int Main(int argc, char** argv) {
  CLI::App app("glmserve workers without an engine");
  app.option_defaults()->always_capture_default();
  ScriptedWorkerOptions options;
  int32_t count = 1;
  std::string control;
  app.add_option("--host", options.host, "Address to listen on");
  app.add_option("--port", options.port, "The first port; 0: free ones");
  app.add_option("--count", count, "Workers")->check(CLI::Range(1, 4096));
  app.add_option("--served-model-name", options.model_name, "As the router's");
  app.add_option("--vocabulary", options.vocabulary, "Ids of prompts and answers");
  app.add_option("--length-max", options.length_max, "Tokens of one request");
  app.add_option("--block-size", options.block_size, "Tokens of a block");
  app.add_option("--kv-blocks", options.kv_blocks_total, "Blocks, of the prefix cache too");
  app.add_option("--sequences-max", options.sequences_max, "Requests running at once");
  app.add_option("--eos-ids", options.eos_ids, "Ids that are never answered")->delimiter(',');
  app.add_option("--answer-ids-begin", options.answer_ids_begin, "The first id of answers");
  app.add_option("--answer-ids-end", options.answer_ids_end, "The one after the last; 0: all");
  app.add_option("--prefix-caching", options.prefix_caching, "true or false");
  app.add_option("--prefix-hash-key", options.prefix_hash_key, "32 hex digits; empty: public");
  app.add_option("--tokens-per-s", options.script.tokens_per_s, "Of each request; 0: at once");
  app.add_option("--prefill-tokens-per-s", options.script.prefill_tokens_per_s,
                 "Of all prompts together; 0: at once");
  app.add_option("--slow", options.script.slow, "Everything takes this much longer");
  app.add_option("--control", control, "A file with a script");
  CLI11_PARSE(app, argc, argv);
  SetLogName("scripted-worker");

  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  const auto workers = ScriptedWorkers::Start(options, count);
  if (!workers.ok()) {
    LOG(ERROR) << workers.status().message();
    return 1;
  }
  nlohmann::json ready = {{"addresses", nlohmann::json::array()}};
  for (int32_t i = 0; i < count; ++i) ready["addresses"].push_back((*workers)->address(i));
  std::cout << ready.dump() << std::endl;

  std::string known;
  const timespec tenth{.tv_sec = 0, .tv_nsec = 100'000'000};
  while (sigtimedwait(&signals, nullptr, &tenth) < 0) {
    if (control.empty()) continue;
    const std::string text = Read(control);
    if (text.empty() || text == known) continue;
    known = text;
    Obey(text, options.script, workers->get());
  }
  return 0;
}

}  // namespace
}  // namespace glm::bench

int main(int argc, char** argv) { return glm::bench::Main(argc, argv); }
