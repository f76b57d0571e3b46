// Additions to the flat gradient, each element's terms in a fixed order.
#include "device.cuh"

// grad += the sum of parts, which are added up in their order first. grad: [numel], parts: [count, numel]. Grid: any.
extern "C" __global__ void add_rows(float* __restrict__ grad, const float* __restrict__ parts, int count, uint64_t numel) {
  for (uint64_t i = first_of_grid(); i < numel; i += step_of_grid()) {
    float sum = parts[i];
    for (int part = 1; part < count; ++part) sum += parts[part * numel + i];
    grad[i] += sum;
  }
}
HOST_KERNEL(add_rows)

// Adds the gradients of the tokens order[start], order[start + 1], ... to their row, as long as they are of the same.
template <class T, bool WHOLE>
__device__ __forceinline__ void add_run(float* grad, const T* values, const int64_t* order, const int64_t* rows, int start, int tokens,
                                        int width) {
  int64_t row = rows[start];
  grad += row * width;
  for (int at = 8 * threadIdx.x; at < width; at += 8 * blockDim.x) {
    float sum[8], v[8];
    load8<WHOLE>(grad + at, width - at, sum);
    for (int i = start; i < tokens && rows[i] == row; ++i) {
      load8<WHOLE>(values + order[i] * width + at, width - at, v);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[j] += v[j];
    }
    store8<WHOLE>(grad + at, width - at, sum);
  }
}

// grad[rows[i]] += values[order[i]] for every i. rows is sorted, and order ascends within a row: the order of additions is that of the
// tokens. grad: [.., width] fp32, values: [tokens, width]. Grid: a block for each token; it works if it is the first of its row.
#define ADD_SORTED_ROWS(name, T)                                                                                                  \
  extern "C" __global__ void __launch_bounds__(512)                                                                               \
  name(float* __restrict__ grad, const T* __restrict__ values, const int64_t* __restrict__ order, const int64_t* __restrict__ rows, \
       int tokens, int width) {                                                                                                   \
    int start = blockIdx.x;                                                                                                       \
    if (start > 0 && rows[start - 1] == rows[start]) return;                                                                      \
    if (are_whole(width, grad, values)) add_run<T, true>(grad, values, order, rows, start, tokens, width);                                        \
    else add_run<T, false>(grad, values, order, rows, start, tokens, width);                                                      \
  }                                                                                                                               \
  HOST_KERNEL(name)
ADD_SORTED_ROWS(add_sorted_rows_bf16, bf16)
ADD_SORTED_ROWS(add_sorted_rows_f32, float)
