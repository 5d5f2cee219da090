// Errors of operators: "operator: what was expected, and what was got". Torch-free.
#pragma once

#include <sstream>
#include <stdexcept>

namespace tandem {

// Throws "operator: message".
template <class... Args>
[[noreturn]] __attribute__((noinline, cold)) void fail(const char* op, const Args&... message) {
  std::ostringstream text;
  text << op << ": ";
  (text << ... << message);
  throw std::runtime_error(text.str());
}

}  // namespace tandem

// Throws unless the condition holds. A macro, so that a message's parts are computed only where one is needed.
#define TANDEM_CHECK(condition, op, ...)                 \
  do {                                                   \
    if (!(condition)) ::tandem::fail((op), __VA_ARGS__); \
  } while (false)
