// Sums that stay on the device, in fp64 and in an order that depends on the number of terms alone.
#include "device.cuh"

// Squares of one block's share of x in fp64: parts: [gridDim.x]. Blocks take turns in runs of blockDim.x elements.
extern "C" __global__ void __launch_bounds__(512) square_parts(const float* __restrict__ x, double* __restrict__ parts, uint64_t numel) {
  __shared__ double scratch[32];
  double sum = 0.0;
  for (uint64_t i = first_of_grid(); i < numel; i += step_of_grid()) sum += (double)x[i] * (double)x[i];
  sum = block_sum(sum, scratch);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}
HOST_KERNEL(square_parts)

// total = the sum of terms. Grid: one block.
#define SUM(name, T)                                                                                                             \
  extern "C" __global__ void __launch_bounds__(512) name(const T* __restrict__ terms, double* __restrict__ total, int count) {    \
    __shared__ double scratch[32];                                                                                               \
    double sum = 0.0;                                                                                                            \
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += terms[i];                                                       \
    sum = block_sum(sum, scratch);                                                                                               \
    if (threadIdx.x == 0) *total = sum;                                                                                          \
  }                                                                                                                              \
  HOST_KERNEL(name)
SUM(sum_parts, double)
SUM(sum_losses, float)
