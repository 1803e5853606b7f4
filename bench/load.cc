#include "bench/load.h"

#include <algorithm>
#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <cmath>
#include <functional>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace glm::bench {
namespace {

namespace beast = boost::beast;
namespace http = beast::http;
using boost::asio::ip::tcp;
using Clock = std::chrono::steady_clock;
using Json = nlohmann::json;

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

/// What was measured of one request.
struct Measured {
  bool complete = false;
  std::string error;
  double lateness_s = 0;  // sent this long after its scheduled time
  double first_s = 0;     // to the first event with a choice
  double total_s = 0;     // to the last event
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  std::vector<double> gaps_s;  // between events with a choice
};

/// One streaming completion on a connection of its own.
class Stream : public std::enable_shared_from_this<Stream> {
 public:
  Stream(boost::asio::io_context& loop, const LoadOptions& options, std::string body,
         std::function<void(Measured)> done)
      : stream_(loop), done_(std::move(done)) {
    request_.method(http::verb::post);
    request_.target("/v1/completions");
    request_.version(11);
    request_.set(http::field::host, options.host);
    request_.set(http::field::content_type, "application/json");
    request_.body() = std::move(body);
    request_.prepare_payload();
    parser_.body_limit(boost::none);
    stream_.expires_after(std::chrono::seconds(options.timeout_s));
  }

  void Start(const tcp::resolver::results_type& endpoints) {
    begin_ = Clock::now();
    stream_.async_connect(endpoints, [self = shared_from_this()](beast::error_code error, auto) {
      if (error) return self->Fail("connect: " + error.message());
      self->Send();
    });
  }

 private:
  void Send() {
    http::async_write(stream_, request_,
                      [self = shared_from_this()](beast::error_code error, size_t) {
                        if (error) return self->Fail("write: " + error.message());
                        self->ReadHeader();
                      });
  }

  void ReadHeader() {
    http::async_read_header(stream_, buffer_, parser_,
                            [self = shared_from_this()](beast::error_code error, size_t) {
                              if (error) return self->Fail("read: " + error.message());
                              self->ReadBody();
                            });
  }

  void ReadBody() {
    parser_.get().body().data = chunk_.data();
    parser_.get().body().size = chunk_.size();
    http::async_read_some(stream_, buffer_, parser_,
                          [self = shared_from_this()](beast::error_code error, size_t) {
                            if (error == http::error::need_buffer) error = {};
                            if (error) return self->Fail("read: " + error.message());
                            self->TakeBytes(self->chunk_.size() - self->parser_.get().body().size);
                            if (!self->parser_.is_done()) return self->ReadBody();
                            self->Finish();
                          });
  }

  void TakeBytes(size_t count) {
    text_.append(chunk_.data(), count);
    if (parser_.get().result() != http::status::ok) return;  // an error object, read to its end
    for (size_t end; (end = text_.find("\n\n")) != std::string::npos; text_.erase(0, end + 2)) {
      TakeEvent(text_.substr(0, end));
    }
  }

  void TakeEvent(const std::string& line) {
    const std::string prefix = "data: ";
    if (line.rfind(prefix, 0) != 0) return;
    if (line == "data: [DONE]") {
      saw_done_ = true;
      return;
    }
    const Json event = Json::parse(line.substr(prefix.size()), nullptr, /*allow_exceptions=*/false);
    if (!event.is_object()) {
      measured_.error = "an event that is not JSON";
      return;
    }
    if (event.contains("error")) measured_.error = event["error"].dump();
    if (event.contains("usage") && event["usage"].is_object()) {
      measured_.prompt_tokens = event["usage"].value("prompt_tokens", 0);
      measured_.completion_tokens = event["usage"].value("completion_tokens", 0);
    }
    if (!event.contains("choices") || event["choices"].empty()) return;
    const Clock::time_point now = Clock::now();
    if (measured_.first_s == 0) {
      measured_.first_s = Seconds(now - begin_);
    } else {
      measured_.gaps_s.push_back(Seconds(now - last_));
    }
    last_ = now;
  }

  void Finish() {
    if (parser_.get().result() != http::status::ok) {
      return Fail(absl::StrCat("HTTP ", parser_.get().result_int(), ": ", text_));
    }
    if (!measured_.error.empty()) return Fail(measured_.error);
    if (!saw_done_) return Fail("the stream ended without [DONE]");
    measured_.complete = true;
    measured_.total_s = Seconds(Clock::now() - begin_);
    done_(std::move(measured_));
  }

  void Fail(std::string error) {
    measured_.error = std::move(error);
    done_(std::move(measured_));
  }

  beast::tcp_stream stream_;
  std::function<void(Measured)> done_;
  http::request<http::string_body> request_;
  http::response_parser<http::buffer_body> parser_;
  beast::flat_buffer buffer_;
  std::array<char, 16384> chunk_;
  std::string text_;  // not yet a whole event
  bool saw_done_ = false;
  Clock::time_point begin_;
  Clock::time_point last_;
  Measured measured_;
};

/// GET of a small JSON answer.
absl::StatusOr<Json> GetJson(const LoadOptions& options, const std::string& target) {
  boost::asio::io_context loop;
  tcp::resolver resolver(loop);
  beast::tcp_stream stream(loop);
  beast::error_code error;
  const auto endpoints = resolver.resolve(options.host, std::to_string(options.port), error);
  if (!error) stream.connect(endpoints, error);
  http::request<http::empty_body> request(http::verb::get, target, 11);
  request.set(http::field::host, options.host);
  if (!error) http::write(stream, request, error);
  beast::flat_buffer buffer;
  http::response<http::string_body> response;
  if (!error) http::read(stream, buffer, response, error);
  if (error) {
    return absl::UnavailableError(
        absl::StrCat("http://", options.host, ":", options.port, target, ": ", error.message()));
  }
  Json body = Json::parse(response.body(), nullptr, /*allow_exceptions=*/false);
  if (response.result() != http::status::ok || body.is_discarded()) {
    return absl::UnavailableError(absl::StrCat(target, " answers ", response.result_int()));
  }
  return body;
}

absl::StatusOr<std::string> ModelName(const LoadOptions& options) {
  if (!options.model.empty()) return options.model;
  const absl::StatusOr<Json> models = GetJson(options, "/v1/models");
  if (!models.ok()) return models.status();
  if (!models->contains("data") || (*models)["data"].empty()) {
    return absl::NotFoundError("/v1/models lists no model");
  }
  return (*models)["data"][0].value("id", "");
}

/// Sends requests by schedule and collects what was measured.
class Generator {
 public:
  Generator(const LoadOptions& options, std::string model)
      : options_(options), model_(std::move(model)), timer_(loop_), random_(options.seed) {
    std::uniform_int_distribution<int32_t> id(0, options_.vocabulary - 1);
    for (int32_t i = 0; i < options_.random_prefix_len; ++i) prefix_.push_back(id(random_));
    double at_s = 0;
    std::exponential_distribution<double> gap(options_.request_rate > 0 ? options_.request_rate
                                                                        : 1);
    for (int32_t i = 0; i < options_.num_prompts; ++i) {
      schedule_s_.push_back(at_s);
      if (options_.request_rate > 0) at_s += gap(random_);
    }
  }

  absl::Status Run() {
    tcp::resolver resolver(loop_);
    beast::error_code error;
    endpoints_ = resolver.resolve(options_.host, std::to_string(options_.port), error);
    if (error) return absl::UnavailableError(options_.host + ": " + error.message());
    begin_ = Clock::now();
    SendDue();
    loop_.run();
    duration_s_ = Seconds(Clock::now() - begin_);
    return absl::OkStatus();
  }

  const std::vector<Measured>& measured() const { return measured_; }
  double duration_s() const { return duration_s_; }

 private:
  void SendDue() {
    while (sent_ < schedule_s_.size() && running_ < options_.max_concurrency) {
      const double wait_s = schedule_s_[sent_] - Seconds(Clock::now() - begin_);
      if (wait_s > 0) {
        timer_.expires_after(
            std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(wait_s)));
        timer_.async_wait([this](beast::error_code error) {
          if (!error) SendDue();
        });
        return;
      }
      SendOne(-wait_s);
    }
  }

  void SendOne(double lateness_s) {
    ++sent_;
    ++running_;
    const auto stream = std::make_shared<Stream>(loop_, options_, MakeBody(),
                                                 [this, lateness_s](Measured measured) {
                                                   measured.lateness_s = lateness_s;
                                                   measured_.push_back(std::move(measured));
                                                   --running_;
                                                   ShowProgress();
                                                   SendDue();
                                                 });
    stream->Start(endpoints_);
  }

  std::string MakeBody() {
    std::uniform_int_distribution<int32_t> id(0, options_.vocabulary - 1);
    std::vector<int32_t> prompt = prefix_;
    for (int32_t i = 0; i < options_.random_input_len; ++i) prompt.push_back(id(random_));
    const Json body = {{"model", model_},
                       {"prompt", prompt},
                       {"max_tokens", options_.random_output_len},
                       {"temperature", 0},
                       {"ignore_eos", true},
                       {"stream", true},
                       {"stream_options", {{"include_usage", true}}}};
    return body.dump();
  }

  void ShowProgress() const {
    if (measured_.size() % std::max<size_t>(1, schedule_s_.size() / 20) != 0) return;
    std::cerr << "\r" << measured_.size() << " of " << schedule_s_.size() << " requests, "
              << absl::StrFormat("%.1f s", Seconds(Clock::now() - begin_)) << std::flush;
  }

  const LoadOptions options_;
  const std::string model_;
  boost::asio::io_context loop_;
  boost::asio::steady_timer timer_;
  tcp::resolver::results_type endpoints_;
  std::mt19937_64 random_;
  std::vector<int32_t> prefix_;
  std::vector<double> schedule_s_;
  Clock::time_point begin_;
  size_t sent_ = 0;
  int32_t running_ = 0;
  double duration_s_ = 0;
  std::vector<Measured> measured_;
};

double Percentile(std::vector<double> values, double share) {
  if (values.empty()) return std::nan("");
  std::sort(values.begin(), values.end());
  const double rank = share * static_cast<double>(values.size() - 1);
  const size_t low = static_cast<size_t>(rank);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (rank - static_cast<double>(low)) * (values[high] - values[low]);
}

double Mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? std::nan("") : sum / static_cast<double>(values.size());
}

/// Prints one line of the table and adds it to the record, in milliseconds.
void Report(const char* title, const char* key, const std::vector<double>& seconds, Json& record) {
  const double mean = Mean(seconds) * 1e3;
  const double p50 = Percentile(seconds, 0.5) * 1e3;
  const double p99 = Percentile(seconds, 0.99) * 1e3;
  std::cerr << absl::StrFormat("%-24s mean %9.2f   median %9.2f   p99 %9.2f ms\n", title, mean, p50,
                               p99);
  record[absl::StrCat(key, "_mean_ms")] = mean;
  record[absl::StrCat(key, "_p50_ms")] = p50;
  record[absl::StrCat(key, "_p99_ms")] = p99;
}

absl::Status Summarize(const LoadOptions& options, const Generator& generator) {
  std::vector<double> first, per_token, gaps, total, lateness;
  int64_t prompt_tokens = 0, completion_tokens = 0;
  size_t complete = 0;
  std::string error;
  for (const Measured& request : generator.measured()) {
    lateness.push_back(request.lateness_s);
    if (!request.complete) {
      error = request.error;
      continue;
    }
    ++complete;
    first.push_back(request.first_s);
    total.push_back(request.total_s);
    if (request.completion_tokens > 1) {
      per_token.push_back((request.total_s - request.first_s) /
                          static_cast<double>(request.completion_tokens - 1));
    }
    gaps.insert(gaps.end(), request.gaps_s.begin(), request.gaps_s.end());
    prompt_tokens += request.prompt_tokens;
    completion_tokens += request.completion_tokens;
  }
  const double duration = generator.duration_s();
  Json record = {{"bench", "load"},
                 {"requests", generator.measured().size()},
                 {"complete", complete},
                 {"duration_s", duration},
                 {"request_rate", options.request_rate},
                 {"max_concurrency", options.max_concurrency},
                 {"input_len", options.random_prefix_len + options.random_input_len},
                 {"output_len", options.random_output_len},
                 {"requests_per_s", static_cast<double>(complete) / duration},
                 {"prompt_tokens_per_s", static_cast<double>(prompt_tokens) / duration},
                 {"output_tokens_per_s", static_cast<double>(completion_tokens) / duration}};
  std::cerr << absl::StrFormat(
      "\r%d of %d requests complete in %.2f s: %.2f requests/s, %.1f prompt and %.1f output "
      "tokens/s\n",
      complete, generator.measured().size(), duration, static_cast<double>(complete) / duration,
      static_cast<double>(prompt_tokens) / duration,
      static_cast<double>(completion_tokens) / duration);
  Report("time to first token", "ttft", first, record);
  Report("time per output token", "tpot", per_token, record);
  Report("between events", "itl", gaps, record);
  Report("whole request", "e2e", total, record);
  Report("sent late by", "lateness", lateness, record);
  std::cout << record.dump() << std::endl;
  if (complete == generator.measured().size()) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(generator.measured().size() - complete,
                                          " requests failed, one of them with: ", error));
}

}  // namespace

absl::Status LoadOptions::Validate() const {
  struct Bound {
    const char* flag;
    double value, low, high;
  };
  for (const Bound& bound : {Bound{"port", double(port), 1, 65535},
                             {"num-prompts", double(num_prompts), 1, 1e6},
                             {"request-rate", request_rate, 0, 1e6},
                             {"max-concurrency", double(max_concurrency), 1, 16384},
                             {"random-input-len", double(random_input_len), 1, 1e6},
                             {"random-output-len", double(random_output_len), 1, 1e6},
                             {"random-prefix-len", double(random_prefix_len), 0, 1e6},
                             {"vocabulary", double(vocabulary), 1, 1e6},
                             {"timeout-s", double(timeout_s), 1, 86400}}) {
    if (bound.value >= bound.low && bound.value <= bound.high) continue;
    return absl::InvalidArgumentError(absl::StrCat("--", bound.flag, " is ", bound.value,
                                                   ", it must be from ", bound.low, " to ",
                                                   bound.high));
  }
  return absl::OkStatus();
}

absl::Status RunLoad(const LoadOptions& options) {
  const absl::StatusOr<std::string> model = ModelName(options);
  if (!model.ok()) return model.status();
  Generator generator(options, *model);
  if (absl::Status status = generator.Run(); !status.ok()) return status;
  return Summarize(options, generator);
}

}  // namespace glm::bench
