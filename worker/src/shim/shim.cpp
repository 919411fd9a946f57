// What tch does not bind: peak memory through c10's reports of every allocation, multiply-accumulates through
// libtorch's operator observers, memory of an accelerator, and loading of the CUDA half of libtorch.
//
// Nothing here throws into Rust, except that a report may throw into libtorch's allocator, whose callers torch-sys guards.

#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <c10/core/Allocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <dlfcn.h>
#include <time.h>

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <mutex>
#include <unordered_map>

namespace {

// Counts bytes of one device type that are allocated and freed while it is pushed.
class MemoryTracker final : public c10::MemoryReportingInfoBase {
 public:
  MemoryTracker(c10::DeviceType device, int64_t budget) : device_(device), budget_(budget) {}

  bool memoryProfilingEnabled() const override { return true; }

  void reportMemoryUsage(void* ptr, int64_t bytes, size_t, size_t, c10::Device device) override {
    if (device.type() != device_) return;
    std::unique_lock<std::mutex> lock(mutex_);
    if (bytes <= 0) {
      // Blocks from before the tracker began are not in the map, and not in the count either.
      auto block = blocks_.find(ptr);
      if (block == blocks_.end()) return;
      current_ -= block->second;
      blocks_.erase(block);
      return;
    }
    if (budget_ > 0 && current_ + bytes > budget_) {
      const int64_t wanted = current_ + bytes;
      lock.unlock();
      // The caller does not own the block yet; on an accelerator it stays in the caching allocator's pool.
      if (device_ == c10::DeviceType::CPU) c10::free_cpu(ptr);
      TORCH_CHECK_WITH(OutOfMemoryError, false, "out of memory: ", wanted, " bytes needed, ", budget_, " allowed");
    }
    blocks_[ptr] = bytes;
    current_ += bytes;
    peak_ = std::max(peak_, current_);
  }

  int64_t mark() {
    std::lock_guard<std::mutex> lock(mutex_);
    peak_ = current_;
    return current_;
  }

  int64_t current() {
    std::lock_guard<std::mutex> lock(mutex_);
    return current_;
  }

  int64_t peak() {
    std::lock_guard<std::mutex> lock(mutex_);
    return peak_;
  }

 private:
  const c10::DeviceType device_;
  const int64_t budget_;
  std::mutex mutex_;
  std::unordered_map<void*, int64_t> blocks_;
  int64_t current_ = 0;
  int64_t peak_ = 0;
};

struct TrackerScope {
  TrackerScope(std::shared_ptr<MemoryTracker> t) : tracker(std::move(t)), guard(c10::DebugInfoKind::PROFILER_STATE, tracker) {}
  std::shared_ptr<MemoryTracker> tracker;
  c10::DebugInfoGuard guard;
};

// Outermost operators that multiply: what they call inside is part of them.
thread_local int mac_depth = 0;
thread_local int64_t mac_total = 0;

// The inputs of a call can be read only before it runs, its result only afterwards:
// multiply-accumulates = before + elements of the result × per_output.
struct MacContext final : public at::ObserverContext {
  bool outermost = false;
  int64_t before = 0;
  int64_t per_output = 0;
};

bool is_any(const char* name, std::initializer_list<const char*> names) {
  for (const char* other : names) {
    if (std::strcmp(name, other) == 0) return true;
  }
  return false;
}

std::unique_ptr<at::ObserverContext> mac_start(const at::RecordFunction& call) {
  const char* name = call.name();
  if (std::strncmp(name, "aten::", 6) != 0) return nullptr;
  name += 6;
  const auto inputs = call.inputs();
  const auto tensor = [&](size_t i) { return inputs[i].toTensor(); };
  auto context = std::make_unique<MacContext>();
  if (is_any(name, {"conv1d", "conv2d", "conv3d", "convolution"})) {
    context->per_output = tensor(1).numel() / tensor(1).size(0);
  } else if (is_any(name, {"linear", "mm", "bmm", "matmul"})) {
    context->per_output = tensor(0).size(-1);
  } else if (is_any(name, {"addmm", "baddbmm"})) {
    context->per_output = tensor(1).size(-1);
  } else if (is_any(name, {"scaled_dot_product_attention"})) {
    context->before = tensor(0).numel() * tensor(1).size(-2);
    context->per_output = tensor(1).size(-2);
  } else {
    return nullptr;
  }
  context->outermost = mac_depth++ == 0;
  return context;
}

void mac_end(const at::RecordFunction& call, at::ObserverContext* observer) {
  if (observer == nullptr) return;
  const auto* context = static_cast<MacContext*>(observer);
  --mac_depth;
  if (!context->outermost || call.outputs().empty()) return;
  mac_total += context->before + call.outputs()[0].toTensor().numel() * context->per_output;
}

}  // namespace

extern "C" {

void* temponas_memory_begin(int device_type, int64_t budget) noexcept {
  return new TrackerScope(std::make_shared<MemoryTracker>(static_cast<c10::DeviceType>(device_type), budget));
}

int64_t temponas_memory_mark(void* scope) noexcept { return static_cast<TrackerScope*>(scope)->tracker->mark(); }

int64_t temponas_memory_current(void* scope) noexcept { return static_cast<TrackerScope*>(scope)->tracker->current(); }

int64_t temponas_memory_peak(void* scope) noexcept { return static_cast<TrackerScope*>(scope)->tracker->peak(); }

void temponas_memory_end(void* scope) noexcept { delete static_cast<TrackerScope*>(scope); }

uint64_t temponas_macs_begin() noexcept {
  mac_depth = 0;
  mac_total = 0;
  return at::addThreadLocalCallback(at::RecordFunctionCallback(mac_start, mac_end)
                                        .needsInputs(true)
                                        .needsOutputs(true)
                                        .scopes({at::RecordScope::FUNCTION}));
}

int64_t temponas_macs_end(uint64_t handle) noexcept {
  at::removeCallback(handle);
  return mac_total;
}

bool temponas_cuda_memory(int index, uint64_t* free_bytes, uint64_t* total_bytes) noexcept {
  try {
    const auto [free, total] = c10::getDeviceAllocator(c10::DeviceType::CUDA)->getMemoryInfo(static_cast<c10::DeviceIndex>(index));
    *free_bytes = free;
    *total_bytes = total;
    return true;
  } catch (...) {
    return false;
  }
}

double temponas_thread_seconds() noexcept {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

bool temponas_load_cuda() noexcept { return dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) != nullptr; }

}  // extern "C"
