// Causal attention by cuDNN and by flash attention (Dao, 2023), both ways, with what a backward pass of our own needs.
#include "shim.hpp"

#include <ATen/Context.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention_backward.h>

using at::Tensor;

namespace {

constexpr double NO_DROPOUT = 0.0;
constexpr bool CAUSAL = true;
constexpr bool NO_DEBUG_MASK = false;

// While it lives, libtorch takes the form of an operation that gives the same bits in every run, if asked to.
class SameBits {
  public:
    explicit SameBits(bool wanted)
        : was_wanted_(at::globalContext().deterministicAlgorithms()),
          only_warned_(at::globalContext().deterministicAlgorithmsWarnOnly()),
          filled_(at::globalContext().deterministicFillUninitializedMemory()) {
        at::globalContext().setDeterministicAlgorithms(wanted, false);
        at::globalContext().setDeterministicFillUninitializedMemory(false);
    }
    ~SameBits() {
        at::globalContext().setDeterministicAlgorithms(was_wanted_, only_warned_);
        at::globalContext().setDeterministicFillUninitializedMemory(filled_);
    }
    SameBits(const SameBits &) = delete;
    SameBits &operator=(const SameBits &) = delete;

  private:
    bool was_wanted_, only_warned_, filled_;
};

} // namespace

extern "C" {

// q, k, v: [samples, H, L, K], any strides with a dense last dim. out: the heads' output, its log-sum-exp, and two that say which random
// numbers were drawn.
char *dslaunch_cudnn_forward(Tensor **out, const Tensor *q, const Tensor *k, const Tensor *v) {
    OR_TEXT({
        auto made = at::_scaled_dot_product_cudnn_attention(*q, *k, *v, std::nullopt, true, NO_DROPOUT, CAUSAL, NO_DEBUG_MASK);
        give(out, {std::get<0>(made), std::get<1>(made), std::get<6>(made), std::get<7>(made)});
    })
}

// saved: what the forward pass gave. out: the gradients of q, k and v.
char *dslaunch_cudnn_backward(Tensor **out, const Tensor *dout, const Tensor *q, const Tensor *k, const Tensor *v,
                              const Tensor *const *saved) {
    OR_TEXT({
        auto len = q->size(2);
        auto made = at::_scaled_dot_product_cudnn_attention_backward(*dout, *q, *k, *v, *saved[0], *saved[1], *saved[2], *saved[3],
                                                                     Tensor(), Tensor(), Tensor(), len, len, NO_DROPOUT, CAUSAL);
        give(out, {std::get<0>(made), std::get<1>(made), std::get<2>(made)});
    })
}

// q: [T, H, K], k and v: [T, G, K], any strides with a dense last dim; starts: [samples + 1] int32, the samples' first tokens and T;
// longest: tokens of the longest sample. out: as dslaunch_cudnn_forward.
char *dslaunch_flash_forward(Tensor **out, const Tensor *q, const Tensor *k, const Tensor *v, const Tensor *starts, int64_t longest) {
    OR_TEXT({
        auto made = at::_flash_attention_forward(*q, *k, *v, *starts, *starts, longest, longest, NO_DROPOUT, CAUSAL, NO_DEBUG_MASK);
        give(out, {std::get<0>(made), std::get<1>(made), std::get<2>(made), std::get<3>(made)});
    })
}

// As dslaunch_cudnn_backward. same_bits: whether it gives the same bits in every run, which takes longer.
char *dslaunch_flash_backward(Tensor **out, const Tensor *dout, const Tensor *q, const Tensor *k, const Tensor *v,
                              const Tensor *const *saved, const Tensor *starts, int64_t longest, int same_bits) {
    OR_TEXT({
        SameBits form(same_bits != 0);
        auto made = at::_flash_attention_backward(*dout, *q, *k, *v, *saved[0], *saved[1], *starts, *starts, longest, longest,
                                                  NO_DROPOUT, CAUSAL, *saved[2], *saved[3]);
        give(out, {std::get<0>(made), std::get<1>(made), std::get<2>(made)});
    })
}
}
