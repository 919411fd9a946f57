// NCCL as a c10d backend, through the few functions of NCCL's C interface that data parallel needs.
//
// libtorch's own NCCL backend can only be built against CUDA's headers and linked against libtorch_cuda; this one needs
// neither, so one binary serves machines with and without. Streams and events are c10's, which find CUDA at run time.
//
// A lost peer leaves NCCL's kernels spinning. Whoever waits for a result polls for NCCL's own errors and for the time,
// and then aborts the communicator, which ends the kernels; no other thread watches and nothing ends the process.

#include "nccl.hpp"

#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <atomic>
#include <climits>
#include <cstring>
#include <thread>

namespace {

using Clock = std::chrono::steady_clock;

// NCCL's C interface (its user guide, "NCCL API"): opaque handles and enumerations, stable within version 2.
using Comm = void*;
using Result = int;
struct UniqueId {
  char bytes[128];
};
// As in version 2.14, the first with communicators that do not block; later ones read this layout by its version.
struct Config {
  size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef;
  unsigned version = 21400;
  int blocking = 0;
  int undefined = INT_MIN;
};
constexpr Result kSuccess = 0;
constexpr Result kInProgress = 7;
constexpr int kSum = 0;

int type_of(c10::ScalarType kind) {
  switch (kind) {
    case c10::ScalarType::Char: return 0;
    case c10::ScalarType::Byte: return 1;
    case c10::ScalarType::Int: return 2;
    case c10::ScalarType::Long: return 4;
    case c10::ScalarType::Half: return 6;
    case c10::ScalarType::Float: return 7;
    case c10::ScalarType::Double: return 8;
    case c10::ScalarType::BFloat16: return 9;
    default: TORCH_CHECK(false, "NCCL does not take tensors of ", kind);
  }
}

struct Library {
  Result (*get_unique_id)(UniqueId*) = nullptr;
  Result (*init_rank)(Comm*, int, UniqueId, int, Config*) = nullptr;
  Result (*all_reduce)(const void*, void*, size_t, int, int, Comm, void*) = nullptr;
  Result (*broadcast)(const void*, void*, size_t, int, int, Comm, void*) = nullptr;
  Result (*async_error)(Comm, Result*) = nullptr;
  Result (*abort)(Comm) = nullptr;
  const char* (*error_string)(Result) = nullptr;
  bool complete = false;

  Library() {
    void* handle = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) return;
    complete = find(handle, "ncclGetUniqueId", get_unique_id) && find(handle, "ncclCommInitRankConfig", init_rank) &&
        find(handle, "ncclAllReduce", all_reduce) && find(handle, "ncclBroadcast", broadcast) &&
        find(handle, "ncclCommGetAsyncError", async_error) && find(handle, "ncclCommAbort", abort) &&
        find(handle, "ncclGetErrorString", error_string);
  }

  template <typename F>
  static bool find(void* handle, const char* name, F& function) {
    function = reinterpret_cast<F>(dlsym(handle, name));
    return function != nullptr;
  }
};

const Library& library() {
  static const Library loaded;
  return loaded;
}

// A communicator that can be given up from outside while others wait on it.
class Communicator {
 public:
  Communicator(UniqueId id, int rank, int ranks, std::chrono::milliseconds timeout) : timeout_(timeout) {
    Config config;
    settle(library().init_rank(&comm_, ranks, id, rank, &config), "joining");
  }

  ~Communicator() { abort(); }

  Comm get() {
    TORCH_CHECK(!aborted_, "the NCCL communicator was given up after an earlier error");
    return comm_;
  }

  // Calls return at once; this waits until one has taken effect, or gives up.
  void settle(Result result, const char* doing) {
    const auto deadline = Clock::now() + timeout_;
    while (result == kInProgress) {
      if (Clock::now() > deadline) fail(doing, "timed out");
      std::this_thread::sleep_for(std::chrono::microseconds(100));
      result = state();
    }
    if (result != kSuccess) fail(doing, library().error_string(result));
  }

  void wait_for(const c10::Event& done, const char* doing) {
    const auto deadline = Clock::now() + timeout_;
    while (!done.query()) {
      const Result result = state();
      if (result != kSuccess && result != kInProgress) fail(doing, library().error_string(result));
      if (Clock::now() > deadline) fail(doing, "timed out");
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    // An aborted communicator completes its events too.
    TORCH_CHECK(!aborted_, "NCCL ", doing, ": given up after an earlier error");
  }

 private:
  Result state() {
    Result result = kSuccess;
    if (!aborted_) library().async_error(comm_, &result);
    return result;
  }

  void abort() {
    if (comm_ != nullptr && !aborted_.exchange(true)) library().abort(comm_);
  }

  [[noreturn]] void fail(const char* doing, const char* why) {
    abort();
    C10_THROW_ERROR(DistBackendError, c10::str("NCCL ", doing, ": ", why, " (limit ", timeout_.count(), " ms)"));
  }

  const std::chrono::milliseconds timeout_;
  Comm comm_ = nullptr;
  std::atomic<bool> aborted_{false};
};

class NcclWork final : public c10d::Work {
 public:
  NcclWork(std::shared_ptr<Communicator> communicator, c10::Event done, const char* doing)
      : communicator_(std::move(communicator)), done_(std::move(done)), doing_(doing) {}

  bool isCompleted() override { return done_.query(); }

  bool wait(std::chrono::milliseconds) override {
    communicator_->wait_for(done_, doing_);
    return true;
  }

 private:
  const std::shared_ptr<Communicator> communicator_;
  const c10::Event done_;
  const char* const doing_;
};

class Nccl final : public c10d::Backend {
 public:
  Nccl(int rank, int ranks, c10::Device device, std::shared_ptr<Communicator> communicator)
      : Backend(rank, ranks),
        device_(device),
        cuda_(device.type()),
        // Of high priority, so that a reduction is not queued behind the whole backward pass.
        stream_(cuda_.getStreamFromGlobalPool(device, true)),
        communicator_(std::move(communicator)) {}

  const std::string getBackendName() const override { return "nccl"; }

  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors, const c10d::AllreduceOptions&) override {
    return start(tensors.at(0), "all-reduce", [](void* data, size_t count, int type, Comm comm, void* stream) {
      return library().all_reduce(data, data, count, type, kSum, comm, stream);
    });
  }

  c10::intrusive_ptr<c10d::Work> broadcast(std::vector<at::Tensor>& tensors, const c10d::BroadcastOptions& options) override {
    const int root = static_cast<int>(options.rootRank);
    return start(tensors.at(0), "broadcast", [root](void* data, size_t count, int type, Comm comm, void* stream) {
      return library().broadcast(data, data, count, type, root, comm, stream);
    });
  }

 private:
  template <typename F>
  c10::intrusive_ptr<c10d::Work> start(const at::Tensor& tensor, const char* doing, F call) {
    TORCH_CHECK(tensor.device() == device_, "a tensor is on ", tensor.device(), ", the group is of ", device_);
    TORCH_CHECK(tensor.is_contiguous(), "a tensor to ", doing, " is not contiguous");
    const c10::DeviceGuard guard(device_);
    // What computes the tensor was queued on the current stream of this thread.
    c10::Event computed(device_.type());
    computed.record(cuda_.getStream(device_));
    computed.block(stream_);
    tensor.record_stream(stream_);
    const auto result = call(
        tensor.data_ptr(), tensor.numel(), type_of(tensor.scalar_type()), communicator_->get(), stream_.native_handle());
    communicator_->settle(result, doing);
    c10::Event done(device_.type());
    done.record(stream_);
    return c10::make_intrusive<NcclWork>(communicator_, std::move(done), doing);
  }

  const c10::Device device_;
  const c10::impl::VirtualGuardImpl cuda_;
  const c10::Stream stream_;
  const std::shared_ptr<Communicator> communicator_;
};

// Rank 0 draws the name of the communicator and shows it to the others.
UniqueId agree_on_id(c10d::Store& store, int rank) {
  UniqueId id{};
  if (rank == 0) {
    const Result result = library().get_unique_id(&id);
    TORCH_CHECK(result == kSuccess, "NCCL: ", library().error_string(result));
    store.set("nccl-id", std::vector<uint8_t>(id.bytes, id.bytes + sizeof(id.bytes)));
    return id;
  }
  const std::vector<uint8_t> bytes = store.get("nccl-id");
  TORCH_CHECK(bytes.size() == sizeof(id.bytes), "rank 0 gave a name of ", bytes.size(), " bytes for NCCL");
  std::memcpy(id.bytes, bytes.data(), sizeof(id.bytes));
  return id;
}

}  // namespace

namespace temponas {

bool has_nccl() { return library().complete; }

c10::intrusive_ptr<c10d::Backend> make_nccl(
    c10d::Store& store, int rank, int ranks, c10::Device device, std::chrono::milliseconds timeout) {
  const c10::DeviceGuard guard(device);
  auto communicator = std::make_shared<Communicator>(agree_on_id(store, rank), rank, ranks, timeout);
  return c10::make_intrusive<Nccl>(rank, ranks, device, std::move(communicator));
}

}  // namespace temponas
