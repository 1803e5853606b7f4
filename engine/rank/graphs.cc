#include "engine/rank/graphs.h"

#include "proto/base/log.h"

namespace glm::engine {

bool StepGraphs::Suits(const StepSizes& sizes) const {
  return device_.CanCapture() && sizes.tokens <= kTokensMax &&
         sizes.tokens <= kTokensASequenceMax * sizes.sequences;
}

StepGraphs::Entry* StepGraphs::Find(const StepSizes& sizes) {
  for (Entry& entry : entries_) {
    if (entry.sizes == sizes) return &entry;
  }
  return nullptr;
}

void StepGraphs::Capture(Entry* entry, const std::function<void()>& issue) {
  if (entry->graph != nullptr) return;
  device_.BeginCapture();
  issue();
  entry->graph = device_.EndCapture();
  ++captured_;
}

void StepGraphs::Capture(const StepSizes& sizes, const std::function<void()>& issue) {
  if (!Suits(sizes)) return;
  Entry* entry = Find(sizes);
  CHECK(entry != nullptr) << "a step is captured once one like it was run";
  Capture(entry, issue);
}

void StepGraphs::Run(const StepSizes& sizes, const std::function<void()>& issue) {
  if (!Suits(sizes)) return issue();
  Entry* entry = Find(sizes);
  if (entry == nullptr) {
    if (static_cast<int64_t>(entries_.size()) < kGraphsMax) {
      entries_.push_back({sizes, nullptr});
    }
    return issue();
  }
  Capture(entry, issue);
  entry->graph->Launch();
  ++replayed_;
}

}  // namespace glm::engine
