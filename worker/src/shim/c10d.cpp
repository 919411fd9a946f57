// Collectives of a group of processes through libtorch's own c10d, and a call whenever a gradient is complete.
//
// Nothing here throws into Rust: a call that fails returns null or false and leaves its words in `temponas_c10d_error`.

#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <cstdlib>
#include <cstring>
#include <mutex>

#include "nccl.hpp"

namespace {

using WorkPointer = c10::intrusive_ptr<c10d::Work>;

thread_local std::string last_error;

template <typename F>
auto guarded(F call) noexcept -> decltype(call()) {
  try {
    return call();
  } catch (const c10::Error& error) {
    last_error = error.what_without_backtrace();
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "an exception of unknown type";
  }
  return {};
}

struct Group {
  // The server of rank 0 lives as long as the group.
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::Backend> backend;
};

// How a process joins; laid out as in Rust.
struct Joining {
  const char* store_host;
  const char* prefix;
  const char* own_address;
  int64_t timeout_ms;
  int store_port;
  int listener;
  int rank;
  int ranks;
  int cuda_device;
};

c10::intrusive_ptr<c10d::Store> open_store(const Joining& joining, std::chrono::milliseconds timeout) {
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(joining.store_port);
  options.timeout = timeout;
  // Ranks wait for each other's keys, which carry the attempt's prefix; a straggler of an earlier attempt must not count.
  options.waitWorkers = false;
  if (joining.rank == 0) {
    options.isServer = true;
    options.masterListenFd = joining.listener;
  }
  auto store = c10::make_intrusive<c10d::TCPStore>(joining.store_host, options);
  return c10::make_intrusive<c10d::PrefixStore>(joining.prefix, std::move(store));
}

c10::intrusive_ptr<c10d::Backend> make_gloo(
    const c10::intrusive_ptr<c10d::Store>& store, const Joining& joining, std::chrono::milliseconds timeout) {
  auto options = c10d::ProcessGroupGloo::Options::create(timeout);
  // The variable by which c10d's users choose among several networks.
  const char* interface = std::getenv("GLOO_SOCKET_IFNAME");
  options->devices.push_back(
      interface != nullptr && *interface != '\0' ? c10d::ProcessGroupGloo::createDeviceForInterface(interface)
                                                 : c10d::ProcessGroupGloo::createDeviceForHostname(joining.own_address));
  return c10::make_intrusive<c10d::ProcessGroupGloo>(store, joining.rank, joining.ranks, std::move(options));
}

// Rank 0 says which backend all use.
std::string agree_on_backend(c10d::Store& store, const Joining& joining) {
  const bool nccl_here = joining.cuda_device >= 0 && temponas::has_nccl();
  if (joining.rank == 0) store.set("backend", std::string(nccl_here ? "nccl" : "gloo"));
  const std::string backend = store.get_to_str("backend");
  TORCH_CHECK(
      backend != "nccl" || nccl_here,
      "rank 0 has NCCL, this rank has not: ", joining.cuda_device < 0 ? "it is not on CUDA" : "no libnccl.so.2 is found");
  return backend;
}

class GradientHook final : public torch::autograd::PostAccumulateGradHook {
 public:
  GradientHook(void (*ready)(void*), void (*release)(void*), void* data) : ready_(ready), release_(release), data_(data) {}
  GradientHook(const GradientHook&) = delete;
  GradientHook& operator=(const GradientHook&) = delete;
  ~GradientHook() override { release_(data_); }

  void operator()(const at::Tensor&) override { ready_(data_); }

 private:
  void (*const ready_)(void*);
  void (*const release_)(void*);
  void* const data_;
};

// libtorch keeps one flight recorder for all groups of a process, and writes to it without a lock when a collective is
// handed over: ranks that are threads of one process would do so at once. Handing over does not wait for anyone.
std::mutex handing_over;

}  // namespace

extern "C" {

// Words of this thread's last failed call.
const char* temponas_c10d_error() noexcept { return last_error.c_str(); }

void* temponas_group_join(const Joining* joining) noexcept {
  return guarded([&]() -> void* {
    const std::chrono::milliseconds timeout(joining->timeout_ms);
    auto group = std::make_unique<Group>();
    group->store = open_store(*joining, timeout);
    if (agree_on_backend(*group->store, *joining) == "nccl") {
      const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(joining->cuda_device));
      group->backend = temponas::make_nccl(*group->store, joining->rank, joining->ranks, device, timeout);
    } else {
      group->backend = make_gloo(group->store, *joining, timeout);
    }
    return group.release();
  });
}

bool temponas_group_is_nccl(const void* group) noexcept {
  return guarded([&] { return static_cast<const Group*>(group)->backend->getBackendName() == "nccl"; });
}

void temponas_group_leave(void* group) noexcept {
  guarded([&] {
    delete static_cast<Group*>(group);
    return true;
  });
}

void* temponas_group_all_reduce(void* group, const at::Tensor* tensor) noexcept {
  return guarded([&]() -> void* {
    std::vector<at::Tensor> tensors{*tensor};
    std::lock_guard<std::mutex> alone(handing_over);
    return new WorkPointer(static_cast<Group*>(group)->backend->allreduce(tensors));
  });
}

void* temponas_group_broadcast(void* group, const at::Tensor* tensor, int root) noexcept {
  return guarded([&]() -> void* {
    std::vector<at::Tensor> tensors{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    std::lock_guard<std::mutex> alone(handing_over);
    return new WorkPointer(static_cast<Group*>(group)->backend->broadcast(tensors, options));
  });
}

bool temponas_work_wait(void* work) noexcept {
  return guarded([&] {
    TORCH_CHECK((*static_cast<WorkPointer*>(work))->wait(), "the collective was given up");
    return true;
  });
}

void temponas_work_free(void* work) noexcept {
  guarded([&] {
    delete static_cast<WorkPointer*>(work);
    return true;
  });
}

// `ready(data)` is called by whichever thread has added to the variable's gradient; `release(data)` once, at the end.
bool temponas_gradient_hook(
    const at::Tensor* variable, void (*ready)(void*), void (*release)(void*), void* data) noexcept {
  return guarded([&] {
    auto hook = std::make_unique<GradientHook>(ready, release, data);
    TORCH_CHECK(variable->is_leaf() && variable->requires_grad(), "only a leaf that requires a gradient can be watched");
    torch::autograd::impl::set_post_acc_grad_hooks(*variable, std::move(hook));
    return true;
  });
}

bool temponas_gradient_unhook(const at::Tensor* variable) noexcept {
  return guarded([&] {
    torch::autograd::impl::set_post_acc_grad_hooks(*variable, nullptr);
    return true;
  });
}

// An empty tensor in the number format of the variable's gradients, which need not be its own. The caller owns it.
at::Tensor* temponas_like_gradient(const at::Tensor* variable) noexcept {
  return guarded([&] {
    const auto kind = variable->grad_dtype().value_or(variable->scalar_type());
    return new at::Tensor(at::empty({0}, variable->options().dtype(kind)));
  });
}

bool temponas_set_gradient(const at::Tensor* variable, const at::Tensor* gradient) noexcept {
  return guarded([&] {
    const_cast<at::Tensor*>(variable)->mutable_grad() = *gradient;
    return true;
  });
}

}  // extern "C"
