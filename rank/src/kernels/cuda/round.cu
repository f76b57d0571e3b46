// Values on their way to another type, and sums of what several ranks have.
#include "device.cuh"

// to = from, rounded to nearest even. [numel]. Grid: any.
extern "C" __global__ void round_to_bf16(const float* __restrict__ from, bf16* __restrict__ to, uint64_t numel) {
  for (uint64_t i = first_of_grid(); i < numel; i += step_of_grid()) narrow(from[i], to + i);
}
HOST_KERNEL(round_to_bf16)

// sum = the sum of pieces in the order of their ranks, from the first on. pieces: [ranks, numel], sum: [numel]. Grid: any.
#define SUM_OVER_RANKS(name, T)                                                                                                  \
  extern "C" __global__ void name(const T* __restrict__ pieces, float* __restrict__ sum, int ranks, uint64_t numel) {             \
    for (uint64_t i = first_of_grid(); i < numel; i += step_of_grid()) {                                                         \
      float total = widen(pieces[i]);                                                                                            \
      for (int rank = 1; rank < ranks; ++rank) total += widen(pieces[rank * numel + i]);                                         \
      sum[i] = total;                                                                                                            \
    }                                                                                                                            \
  }                                                                                                                              \
  HOST_KERNEL(name)
SUM_OVER_RANKS(sum_over_ranks_bf16, bf16)
SUM_OVER_RANKS(sum_over_ranks_f32, float)
