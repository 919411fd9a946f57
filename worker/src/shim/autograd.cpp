// Gradient checkpointing, and gradients in another number format than their weight.
//
// A segment of the model runs without a graph; a node in its place runs it again, with one, when the backward pass
// arrives. Failures cross from Rust as a status and a message, never as an unwinding panic, and to Rust as a status.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using at::Tensor;
using torch::autograd::variable_list;

// Runs a segment: reads `count` tensors, writes one that the caller owns. Not 0: it failed, and `message` says why.
using Run = int (*)(void* closure, const Tensor* const* inputs, size_t count, Tensor** output, char* message, size_t room);
using Drop = void (*)(void* closure);

constexpr size_t kMessage = 1024;

// A Rust closure, owned.
class Segment {
 public:
  Segment(void* closure, Run run, Drop drop) : closure_(closure), run_(run), drop_(drop) {}
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;
  ~Segment() { drop_(closure_); }

  Tensor operator()(const variable_list& inputs) const {
    std::vector<const Tensor*> pointers;
    for (const auto& input : inputs) pointers.push_back(&input);
    Tensor* output = nullptr;
    char message[kMessage] = {0};
    if (run_(closure_, pointers.data(), pointers.size(), &output, message, kMessage) != 0) {
      throw std::runtime_error(message);
    }
    std::unique_ptr<Tensor> owned(output);
    return std::move(*owned);
  }

 private:
  void* closure_;
  Run run_;
  Drop drop_;
};

struct RecomputeNode final : public torch::autograd::Node {
  explicit RecomputeNode(std::shared_ptr<Segment> segment) : segment_(std::move(segment)) {}

  void save(const variable_list& inputs) {
    for (const auto& input : inputs) inputs_.emplace_back(input, /*is_output=*/false);
  }

  variable_list apply(variable_list&& gradients) override {
    variable_list inputs;
    for (const auto& saved : inputs_) {
      const Tensor input = saved.unpack();
      inputs.push_back(input.detach().set_requires_grad(input.requires_grad()));
    }
    if (gradients[0].defined()) {
      Tensor output;
      {
        at::AutoGradMode with_graph(true);
        output = (*segment_)(inputs);
      }
      // The weights inside collect their gradients during this pass, the inputs theirs for the nodes before.
      torch::autograd::backward({output}, {gradients[0]});
    }
    variable_list result;
    for (const auto& input : inputs) {
      result.push_back(input.requires_grad() ? input.grad() : Tensor());
    }
    return result;
  }

  void release_variables() override { inputs_.clear(); }

  std::string name() const override { return "RecomputeBackward"; }

 private:
  std::shared_ptr<Segment> segment_;
  std::vector<torch::autograd::SavedVariable> inputs_;
};

// Runs the segment; whether it trains anything: told by its inputs, or by a trial with a graph, which is then let go.
bool is_trained(const Segment& segment, const variable_list& inputs, Tensor& output) {
  if (!at::GradMode::is_enabled()) {
    output = segment(inputs);
    return false;
  }
  for (const auto& input : inputs) {
    if (input.requires_grad()) {
      at::AutoGradMode without_graph(false);
      output = segment(inputs);
      return true;
    }
  }
  at::AutoGradMode with_graph(true);
  output = segment(inputs);
  return output.requires_grad();
}

}  // namespace

extern "C" {

// Owns `closure` from the call on. The result is the caller's; null: it failed, and `message` says why.
Tensor* temponas_recomputed(const Tensor* const* inputs, size_t count, void* closure, Run run, Drop drop, char* message,
                            size_t room) noexcept {
  try {
    auto segment = std::make_shared<Segment>(closure, run, drop);
    variable_list all;
    for (size_t i = 0; i < count; ++i) all.push_back(*inputs[i]);
    Tensor output;
    if (is_trained(*segment, all, output)) {
      // The same numbers without a history. Not detach(): that would be a view of what the segment made.
      output = output.variable_data();
      auto node = std::shared_ptr<RecomputeNode>(new RecomputeNode(std::move(segment)), torch::autograd::deleteNode);
      node->set_next_edges(torch::autograd::collect_next_edges(all));
      node->save(all);
      torch::autograd::set_history(output, node);
    }
    return new Tensor(std::move(output));
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), room - 1);
    return nullptr;
  } catch (...) {
    std::strncpy(message, "an unknown failure", room - 1);
    return nullptr;
  }
}

// Gradients of a leaf are kept, and added up, as float32 whatever the leaf's own format is.
bool temponas_keep_gradient_as_float(const Tensor* leaf) noexcept {
  try {
    leaf->set_grad_dtype(at::kFloat);
    return true;
  } catch (...) {
    return false;
  }
}

}  // extern "C"
