// Any text as config.json: refused, or a config whose numbers a model can be made of.
#include "engine/model/config.h"

#include <cstdlib>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const auto config =
      glm::engine::ModelConfig::Parse(std::string(reinterpret_cast<const char*>(bytes), size));
  if (!config.ok()) return 0;
  const bool sound = config->hidden_size > 0 && config->layers > 0 && config->query_heads > 0 &&
                     config->kv_heads > 0 && config->query_heads % config->kv_heads == 0 &&
                     config->head_size > 0 && config->rope_size > 0 &&
                     config->rope_size <= config->head_size && config->experts > 0 &&
                     config->experts_per_token <= config->experts && config->vocabulary > 0 &&
                     config->positions_max > 0 && config->rms_norm_eps > 0;
  if (!sound) abort();
  return 0;
}
