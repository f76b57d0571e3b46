// Values on their way to another type, and sums of what several ranks have.
#include "device.cuh"

// to = from, rounded to nearest even. [numel]. Grid: any.
extern "C" __global__ void round_to_bf16(const float* __restrict__ from, bf16* __restrict__ to, uint64_t numel) {
  for (uint64_t i = first_of_grid(); i < numel; i += step_of_grid()) narrow(from[i], to + i);
}
HOST_KERNEL(round_to_bf16)

// 32 bits that depend on the seed and the number alone (the finaliser of MurmurHash3 over 64 bits).
__device__ __forceinline__ uint32_t drawn(uint64_t seed, uint64_t number) {
  uint64_t z = seed + number * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 33)) * 0xff51afd7ed558ccdull;
  z = (z ^ (z >> 33)) * 0xc4ceb9fe1a85ec53ull;
  return (uint32_t)((z ^ (z >> 33)) >> 16);
}

// to = from, rounded to one of the two neighbours, the nearer the likelier: the mean is exact. `position`: of the first element in the
// whole parameter; the same bits on every layout and after every restart. Infinities and NaN stay. [numel]. Grid: any.
extern "C" __global__ void round_stochastically(const float* __restrict__ from, bf16* __restrict__ to, uint64_t seed, uint64_t position,
                                                uint64_t numel) {
  for (uint64_t i = first_of_grid(); i < numel; i += step_of_grid()) {
    uint32_t bits = __float_as_uint(from[i]);
    bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    uint32_t up = bits + (drawn(seed, position + i) & 0xffffu);
    // What would become an infinity stays the largest number.
    if (finite && (up & 0x7f800000u) != 0x7f800000u) to[i] = (bf16)(up >> 16);
    else if (finite) to[i] = (bf16)(bits >> 16);
    else narrow(from[i], to + i);
  }
}
HOST_KERNEL(round_stochastically)

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
