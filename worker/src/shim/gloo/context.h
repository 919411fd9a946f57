#pragma once

#include <chrono>

namespace gloo {

// Connections to all peers; made and used inside libtorch.
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

}  // namespace gloo
