// What every server process of the house does alike: the flags that all have, and how it is told
// to stop.
#pragma once

#include <signal.h>

#include <string>

namespace glm {

/// Flags of every server. `App` is CLI11's; it is a parameter because flags are main's alone, and
/// this room knows no library.
template <typename App>
void AddProcessFlags(App& app, std::string* name) {
  app.option_defaults()->always_capture_default();
  app.set_config("--config", "", "Read flags from this file (name = value lines)");
  app.add_option("--name", *name, "This process's name in its log");
}

/// SIGTERM and SIGINT, waited for instead of handled: nothing runs at a moment that the code does
/// not choose.
///
/// Who calls: main, before it makes any thread, since threads inherit what is blocked.
class StopSignals {
 public:
  /// Blocks them from here on.
  StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  /// Waits for the first one and returns its number. From then on a second one ends the process.
  int Await() const;

 private:
  sigset_t signals_;
};

}  // namespace glm
