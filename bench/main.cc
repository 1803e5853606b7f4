// glmserve-bench: benchmarks, apart from the tests. Each prints JSON lines on stdout, and text for
// people on stderr.
#include <CLI/CLI.hpp>
#include <functional>
#include <iostream>
#include <memory>

#include "bench/allreduce_bench.h"
#include "bench/engine_bench.h"
#include "bench/kernel_bench.h"
#include "bench/load.h"
#include "bench/policy_bench.h"
#include "bench/route_bench.h"
#include "bench/router_bench.h"
#include "bench/schedule_bench.h"
#include "bench/step_bench.h"

namespace glm::bench {
namespace {

CLI::App* AddLoad(CLI::App& app, LoadOptions& options) {
  CLI::App* load = app.add_subcommand("load", "Load on an OpenAI-compatible server");
  load->option_defaults()->always_capture_default();
  load->add_option("--host", options.host, "Server");
  load->add_option("--port", options.port, "Its port");
  load->add_option("--model", options.model, "Model name; empty: the first that it lists");
  load->add_option("--num-prompts", options.num_prompts, "Requests in all");
  load->add_option("--request-rate", options.request_rate, "Requests a second; 0: all at once");
  load->add_option("--max-concurrency", options.max_concurrency, "Requests in flight at most");
  load->add_option("--random-input-len", options.random_input_len, "Tokens of a prompt");
  load->add_option("--random-output-len", options.random_output_len, "Tokens of an answer");
  load->add_option("--random-prefix-len", options.random_prefix_len,
                   "Further leading tokens that all prompts share");
  load->add_option("--vocabulary", options.vocabulary, "Prompt ids are below this");
  load->add_option("--seed", options.seed, "Of lengths, ids and arrivals");
  load->add_option("--timeout-s", options.timeout_s, "A longer request counts as failed");
  return load;
}

CLI::App* AddKernel(CLI::App& app, KernelBenchOptions& options) {
  CLI::App* kernel = app.add_subcommand("kernel", "Every op on the shapes of GLM-4.X");
  kernel->option_defaults()->always_capture_default();
  kernel->add_option("--device", options.device, "cpu (small shapes) or cuda (the real ones)");
  kernel->add_option("--device-index", options.device_index, "Which GPU");
  kernel->add_option("--cpu-threads", options.cpu_threads, "Threads of the CPU backend");
  kernel->add_option("--only", options.only, "Benchmarks whose name contains this; empty: all");
  kernel->add_option("--rounds", options.rounds, "Measurements, of which the median is told");
  return kernel;
}

void AddRanks(CLI::App* app, RanksOptions& ranks) {
  app->add_option("--tensor-parallel-size", ranks.tensor_parallel_size,
                  "Ranks that share the model: 1, 2, 4 or 8");
  app->add_option("--device-index", ranks.device_index, "GPU of rank 0");
  app->add_option("--ranks-per-device", ranks.ranks_per_device, "Ranks that share a GPU");
  app->add_option("--gpu-exchange", ranks.gpu_exchange,
                  "auto, peer, nccl; none: one rank alone, without its exchanges");
}

CLI::App* AddStep(CLI::App& app, StepBenchOptions& options) {
  CLI::App* step = app.add_subcommand("step", "Decode steps and prompts of a model by its config");
  step->option_defaults()->always_capture_default();
  step->add_option("--model", options.model, "Folder with a config.json")->required();
  step->add_option("--device", options.device, "cpu or cuda");
  AddRanks(step, options.ranks);
  step->add_option("--gpu-exchange-overlap", options.gpu_exchange_overlap,
                   "Sum over ranks beside products, in steps of 1024 tokens and more");
  step->add_option("--cpu-threads", options.cpu_threads, "Threads of the CPU backend");
  step->add_option("--load-threads", options.load_threads, "Threads that make weights");
  step->add_option("--layers", options.layers, "The first so many layers only; 0: all");
  step->add_option("--quantization", options.quantization, "none, or fp8: quantise while loading");
  step->add_option("--kv-cache-dtype", options.kv_cache_dtype, "auto or fp8");
  step->add_option("--block-size", options.block_size, "Token slots of a KV block");
  step->add_option("--batch", options.batch, "Sequences of the decode steps")->delimiter(',');
  step->add_option("--context", options.context, "Cached tokens of each");
  step->add_option("--prompt", options.prompt, "Tokens of the prompts")->delimiter(',');
  step->add_option("--max-num-batched-tokens", options.max_num_batched_tokens,
                   "Tokens of one step at most");
  step->add_option("--steps", options.steps, "Decode steps of which the time is told");
  step->add_option("--drafts", options.drafts,
                   "Of each sequence a decode step, by the draft layer");
  step->add_option("--acceptance", options.acceptance, "Share of drafts taken to be right");
  step->add_option("--op-times", options.op_times, "Tell where a step's time goes");
  return step;
}

CLI::App* AddAllReduce(CLI::App& app, AllReduceBenchOptions& options) {
  CLI::App* reduce = app.add_subcommand("allreduce", "What ranks exchange within a step");
  reduce->option_defaults()->always_capture_default();
  reduce->add_option("--device", options.device, "cpu or cuda");
  AddRanks(reduce, options.ranks);
  reduce->add_option("--rows", options.rows, "Tokens of a step")->delimiter(',');
  reduce->add_option("--hidden", options.hidden, "Values of a row");
  reduce->add_option("--vocabulary", options.vocabulary, "Logits of a row, of all ranks");
  reduce->add_option("--rounds", options.rounds, "Measurements, of which the median is told");
  return reduce;
}

CLI::App* AddSchedule(CLI::App& app, ScheduleBenchOptions& options) {
  CLI::App* schedule = app.add_subcommand("schedule", "The host's part of a step, and its overlap");
  schedule->option_defaults()->always_capture_default();
  schedule->add_option("--sequences", options.sequences, "Decoding at once");
  schedule->add_option("--prompt-tokens", options.prompt_tokens, "Of each");
  schedule->add_option("--steps", options.steps, "Of which the time is told");
  schedule->add_option("--step-us", options.step_us, "Microseconds of the device's step");
  schedule->add_option("--block-size", options.block_size, "Token slots of a KV block");
  schedule->add_option("--drafts", options.drafts, "A sequence and step, half of them right");
  schedule->add_option("--prefix-caching", options.prefix_caching, "true or false");
  return schedule;
}

CLI::App* AddRoute(CLI::App& app, RouteBenchOptions& options) {
  CLI::App* route = app.add_subcommand("route", "The index of prefixes, and a choice of worker");
  route->option_defaults()->always_capture_default();
  route->add_option("--blocks", options.blocks, "Of the index");
  route->add_option("--workers", options.workers, "That hold them");
  route->add_option("--depth", options.depth, "Blocks of a long chain");
  route->add_option("--block-size", options.block_size, "Tokens of a block");
  route->add_option("--writers", options.writers, "Threads that change the index");
  route->add_option("--readers", options.readers, "Threads that look up meanwhile");
  route->add_option("--batch", options.batch, "Blocks of one change");
  route->add_option("--mixed-rate", options.mixed_rate, "Blocks changed a second meanwhile");
  route->add_option("--update-blocks", options.update_blocks,
                    "Of the index whose update rate is told; 0: as --blocks");
  route->add_option("--only", options.only,
                    "usual, scattered, worst, update, decision; empty: all");
  route->add_option("--seconds", options.seconds, "Of each measurement");
  return route;
}

CLI::App* AddEngine(CLI::App& app, EngineBenchOptions& options) {
  CLI::App* engine = app.add_subcommand(
      "engine", "Decode steps through the engine loop, and how long the device stands still");
  engine->option_defaults()->always_capture_default();
  engine->add_option("--model", options.model, "Folder with a config.json")->required();
  engine->add_option("--device", options.device, "cpu or cuda");
  AddRanks(engine, options.ranks);
  engine->add_option("--load-threads", options.load_threads, "Threads that make weights");
  engine->add_option("--quantization", options.quantization,
                     "none, or fp8: quantise while loading");
  engine->add_option("--kv-cache-dtype", options.kv_cache_dtype, "auto or fp8");
  engine->add_option("--batch", options.batch, "Sequences that decode at once")->delimiter(',');
  engine->add_option("--context", options.context, "Tokens of each prompt");
  engine->add_option("--steps", options.steps, "Decode steps of which the time is told");
  engine->add_option("--drafts", options.drafts, "A sequence and step, by the draft layer");
  return engine;
}

CLI::App* AddRouter(CLI::App& app, RouterBenchOptions& options) {
  CLI::App* router = app.add_subcommand("router", "A router process over scripted workers");
  router->option_defaults()->always_capture_default();
  router->add_option("--router", options.router, "The program; empty: the one beside this");
  router->add_option("--model", options.model, "Folder of tokenizer and chat template")->required();
  router->add_option("--only", options.only, "chat, streams, memory, idle; empty: all");
  router->add_option("--policies", options.policies, "Of the router, by turns")->delimiter(',');
  router->add_option("--loop-threads", options.loop_threads, "Of the router");
  router->add_option("--workers", options.workers, "Scripted ones");
  router->add_option("--seconds", options.seconds, "Of each measurement");
  router->add_option("--chat-tokens", options.chat_tokens, "Of a short chat");
  router->add_option("--chat-connections", options.chat_connections, "Clients of short chats");
  router->add_option("--streams", options.streams, "Open at once")->delimiter(',');
  router->add_option("--stream-tokens-per-s", options.stream_tokens_per_s, "Of each stream");
  router->add_option("--memory-streams", options.memory_streams, "Open for the memory of one");
  router->add_option("--idle-workers", options.idle_workers, "Without requests");
  return router;
}

CLI::App* AddPolicy(CLI::App& app, PolicyBenchOptions& options) {
  CLI::App* policy =
      app.add_subcommand("policy", "The router's policies over a fleet in virtual time");
  policy->option_defaults()->always_capture_default();
  policy->add_option("--workers", options.workers, "Of the fleet");
  policy->add_option("--requests", options.requests, "Of each run");
  policy->add_option("--shared-percent", options.shared_percent, "Of a prompt's tokens")
      ->delimiter(',');
  policy->add_option("--load-percent", options.load_percent, "Of what least-load can serve")
      ->delimiter(',');
  policy->add_option("--seed", options.seed, "Of arrivals, lengths and ties");
  return policy;
}

/// A subcommand: its flags fill options, and `run` runs with them.
struct Command {
  const CLI::App* app = nullptr;
  std::function<absl::Status()> run;
};

template <typename Options>
Command Make(CLI::App& app, CLI::App* (*add_flags)(CLI::App&, Options&),
             absl::Status (*run)(const Options&)) {
  const auto options = std::make_shared<Options>();
  return {add_flags(app, *options), [options, run] {
            const absl::Status status = options->Validate();
            return status.ok() ? run(*options) : status;
          }};
}

int Main(int argc, char** argv) {
  CLI::App app("glmserve's benchmarks");
  app.require_subcommand(1);
  const Command commands[] = {
      Make(app, AddLoad, RunLoad),          Make(app, AddKernel, RunKernelBench),
      Make(app, AddStep, RunStepBench),     Make(app, AddAllReduce, RunAllReduceBench),
      Make(app, AddEngine, RunEngineBench), Make(app, AddSchedule, RunScheduleBench),
      Make(app, AddRoute, RunRouteBench),   Make(app, AddRouter, RunRouterBench),
      Make(app, AddPolicy, RunPolicyBench),
  };
  CLI11_PARSE(app, argc, argv);
  for (const Command& command : commands) {
    if (!command.app->parsed()) continue;
    const absl::Status status = command.run();
    if (status.ok()) return 0;
    std::cerr << "glmserve-bench: " << status.message() << std::endl;
    return 1;
  }
  return 2;
}

}  // namespace
}  // namespace glm::bench

int main(int argc, char** argv) { return glm::bench::Main(argc, argv); }
