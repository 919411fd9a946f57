#pragma once

namespace gloo {
namespace transport {

// A network interface; made by c10d's factory.
class Device;

// Memory of a send or receive in flight.
class UnboundBuffer {
 public:
  virtual ~UnboundBuffer() = 0;
};

}  // namespace transport
}  // namespace gloo
