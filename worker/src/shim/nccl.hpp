#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace temponas {

// Whether NCCL is on this machine; libtorch for CUDA brings it.
bool has_nccl();

// A c10d backend over NCCL for tensors on one CUDA device. Throws where the ranks do not find together in time.
c10::intrusive_ptr<c10d::Backend> make_nccl(
    c10d::Store& store, int rank, int ranks, c10::Device device, std::chrono::milliseconds timeout);

}  // namespace temponas
