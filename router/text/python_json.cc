#include "router/text/python_json.h"

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "absl/strings/str_format.h"
#include "proto/base/log.h"

namespace glm::router {
namespace {

using Json = nlohmann::ordered_json;

void AppendText(std::string_view text, std::string* out) {
  out->push_back('"');
  for (const char c : text) {
    switch (c) {
      case '"':
        out->append("\\\"");
        break;
      case '\\':
        out->append("\\\\");
        break;
      case '\b':
        out->append("\\b");
        break;
      case '\f':
        out->append("\\f");
        break;
      case '\n':
        out->append("\\n");
        break;
      case '\r':
        out->append("\\r");
        break;
      case '\t':
        out->append("\\t");
        break;
      default:
        if (static_cast<uint8_t>(c) < 0x20) {
          absl::StrAppendFormat(out, "\\u%04x", static_cast<uint8_t>(c));
        } else {
          out->push_back(c);
        }
    }
  }
  out->push_back('"');
}

// Python's repr: plain digits for exponents from -4 to 15, "1e-05" and "1e+16" beyond.
void AppendFloat(double value, std::string* out) {
  if (std::isnan(value)) return out->append("NaN"), void();
  if (std::isinf(value)) return out->append(value < 0 ? "-Infinity" : "Infinity"), void();
  char buffer[32];
  const std::to_chars_result end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  CHECK(end.ec == std::errc());
  std::string_view written(buffer, end.ptr - buffer);
  if (written[0] == '-') {
    out->push_back('-');
    written.remove_prefix(1);
  }
  const size_t e = written.find('e');
  const int exponent = std::atoi(std::string(written.substr(e + 1)).c_str());
  std::string digits(written.substr(0, 1));
  if (e > 2) digits.append(written.substr(2, e - 2));
  const int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    out->append(digits, 0, 1);
    if (count > 1) out->append(".").append(digits, 1);
    absl::StrAppendFormat(out, "e%c%02d", exponent < 0 ? '-' : '+', std::abs(exponent));
  } else if (exponent < 0) {
    out->append("0.").append(-exponent - 1, '0').append(digits);
  } else if (count <= exponent + 1) {
    out->append(digits).append(exponent + 1 - count, '0').append(".0");
  } else {
    out->append(digits, 0, exponent + 1).append(".").append(digits, exponent + 1);
  }
}

void AppendScalar(const Json& value, std::string* out) {
  switch (value.type()) {
    case Json::value_t::boolean:
      out->append(value.get<bool>() ? "true" : "false");
      break;
    case Json::value_t::number_integer:
      out->append(std::to_string(value.get<int64_t>()));
      break;
    case Json::value_t::number_unsigned:
      out->append(std::to_string(value.get<uint64_t>()));
      break;
    case Json::value_t::number_float:
      AppendFloat(value.get<double>(), out);
      break;
    case Json::value_t::string:
      AppendText(value.get_ref<const std::string&>(), out);
      break;
    case Json::value_t::null:
      out->append("null");
      break;
    default:
      CHECK(false) << "JSON of type " << value.type_name() << " does not come from a parser";
  }
}

}  // namespace

void AppendPythonJson(const Json& value, std::string* out) {
  // The lists and objects that are open, with what comes next in each: a client chooses the depth,
  // so it must not be the stack's.
  struct Open {
    const Json* value;
    Json::const_iterator next;
  };
  std::vector<Open> open;
  const auto append = [&open, out](const Json& one) {
    if (!one.is_structured()) return AppendScalar(one, out);
    out->push_back(one.is_object() ? '{' : '[');
    open.push_back({&one, one.begin()});
  };
  append(value);
  while (!open.empty()) {
    Open& top = open.back();
    const bool is_object = top.value->is_object();
    if (top.next == top.value->end()) {
      out->push_back(is_object ? '}' : ']');
      open.pop_back();
      continue;
    }
    if (top.next != top.value->begin()) out->append(", ");
    if (is_object) {
      AppendText(top.next.key(), out);
      out->append(": ");
    }
    const Json& child = *top.next;
    ++top.next;
    append(child);  // may move `open`
  }
}

}  // namespace glm::router
