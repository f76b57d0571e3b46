// Dropout by place (kernels/dropout.rs): which elements are left out depends on where they are alone.
#include "device.cuh"

// What is left of x, or y plus that. x, y: [rows, width], keys: [rows].
template <class T, bool WHOLE, bool ADDS>
__device__ __forceinline__ void drop(const T* x, T* y, const int64_t* keys, int rows, int width, uint64_t salt, uint64_t first,
                                     uint32_t threshold, float scale) {
  uint64_t per_row = (width + 7) / 8;
  for (uint64_t i = first_of_grid(); i < rows * per_row; i += step_of_grid()) {
    uint64_t row = i / per_row;
    int at = (int)(i % per_row) * 8, left = width - at;
    float v[8], sum[8];
    load8<WHOLE>(x + row * width + at, left, v);
    if (ADDS) load8<WHOLE>(y + row * width + at, left, sum);
    uint64_t seed = seed_of((uint64_t)keys[row], salt), column = first + at, bits = draw(seed, column / 2);
#pragma unroll
    for (int j = 0; j < 8; ++j, ++column) {
      if (j > 0 && column % 2 == 0) bits = draw(seed, column / 2);
      float kept = (uint32_t)(bits >> 32 * (column % 2)) < threshold ? 0.0f : v[j] * scale;
      v[j] = ADDS ? sum[j] + kept : kept;
    }
    store8<WHOLE>(y + row * width + at, left, v);
  }
}

// first: the place of the first column in the whole matrix; an element whose draw is below the threshold is left out. Grid: any.
#define DROPOUT(name, T, ADDS)                                                                                                    \
  extern "C" __global__ void __launch_bounds__(256)                                                                               \
  name(const T* __restrict__ x, T* __restrict__ y, const int64_t* __restrict__ keys, int rows, int width, uint64_t salt,          \
       uint64_t first, uint32_t threshold, float scale) {                                                                         \
    if (are_whole(width, x, y)) drop<T, true, ADDS>(x, y, keys, rows, width, salt, first, threshold, scale);                      \
    else drop<T, false, ADDS>(x, y, keys, rows, width, salt, first, threshold, scale);                                            \
  }                                                                                                                               \
  HOST_KERNEL(name)
#define DROPOUT_OF(name, T) DROPOUT(name, T, false)
#define ADD_DROPOUT_OF(name, T) DROPOUT(name, T, true)
DROPOUT_OF(dropout_bf16, bf16)
DROPOUT_OF(dropout_f32, float)
ADD_DROPOUT_OF(add_dropout_bf16, bf16)
ADD_DROPOUT_OF(add_dropout_f32, float)
