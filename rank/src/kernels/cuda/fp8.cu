// Matrices on their way to products in e4m3 (Micikevicius et al., 2022), with a scale for each row.
#include "device.cuh"

// The largest number of e4m3.
#define LARGEST 448.0f
// A row whose largest number is smaller is scaled as if it were this: the scale and its inverse are finite.
#define LEAST 1e-30f

// Rounded to nearest even; what is too large becomes the largest number, and what is none stays none.
__device__ __forceinline__ uint8_t narrow_to_e4m3(float from) {
  uint32_t bits = __float_as_uint(from);
  uint8_t sign = (uint8_t)(bits >> 24 & 0x80);
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7f;
  if (magnitude >= 0x43e00000u) return sign | 0x7e; // 448 and more
  if (magnitude < 0x3c800000u) {                    // below 2^-6: multiples of 2^-9
    float shifted = __uint_as_float(magnitude) * 512.0f + 12582912.0f;
    return sign | (uint8_t)(__float_as_uint(shifted) - 0x4b400000u);
  }
  uint32_t rounded = magnitude + 0x7ffffu + (magnitude >> 20 & 1);
  uint32_t e4m3 = (rounded >> 20) - (120u << 3);
  return sign | (uint8_t)(e4m3 > 0x7e ? 0x7e : e4m3);
}

__device__ __forceinline__ float magnitude_of(float v) { return __uint_as_float(__float_as_uint(v) & 0x7fffffffu); }
__device__ __forceinline__ float largest_or_least(float v) { return v > LEAST ? v : LEAST; }

// scales[r] = the largest magnitude of row r / 448, values = x / scale. x: [rows, width], values: [rows, width] e4m3, scales: [rows].
// Grid: a block of whole warps for each row.
extern "C" __global__ void __launch_bounds__(512)
scale_rows(const bf16* __restrict__ x, uint8_t* __restrict__ values, float* __restrict__ scales, int width) {
  __shared__ float scratch[32];
  x += (uint64_t)blockIdx.x * width;
  values += (uint64_t)blockIdx.x * width;
  float largest = 0.0f;
  for (int i = threadIdx.x; i < width; i += blockDim.x) largest = Larger()(largest, magnitude_of(widen(x[i])));
  largest = largest_or_least(block_reduce(largest, 0.0f, scratch, Larger()));
  float inverse = LARGEST / largest;
  for (int i = threadIdx.x; i < width; i += blockDim.x) values[i] = narrow_to_e4m3(widen(x[i]) * inverse);
  if (threadIdx.x == 0) scales[blockIdx.x] = largest / LARGEST;
}
HOST_KERNEL(scale_rows)

// As scale_rows of the transpose: scales[c] of column c, values: [width, rows]. x: [rows, width]. Grid: a block of 256 for 32 columns,
// which goes down the rows twice.
extern "C" __global__ void __launch_bounds__(256)
scale_columns(const bf16* __restrict__ x, uint8_t* __restrict__ values, float* __restrict__ scales, int rows, int width) {
  __shared__ float largest_of[8][33];
  __shared__ uint8_t tile[32][36];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int column = 32 * blockIdx.x + lane;
  float largest = 0.0f;
  if (column < width)
    for (int row = warp; row < rows; row += 8)
      largest = Larger()(largest, magnitude_of(widen(x[(uint64_t)row * width + column])));
  largest_of[warp][lane] = largest;
  __syncthreads();
  largest = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) largest = Larger()(largest, largest_of[i][lane]);
  largest = largest_or_least(largest);
  float inverse = LARGEST / largest;
  if (warp == 0 && column < width) scales[column] = largest / LARGEST;
  // 32 rows at a time: each thread reads down four of them, and writes along four columns.
  for (int start = 0; start < rows; start += 32) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int row = start + warp + 8 * i;
      bool is_there = column < width && row < rows;
      tile[lane][warp + 8 * i] = is_there ? narrow_to_e4m3(widen(x[(uint64_t)row * width + column]) * inverse) : (uint8_t)0;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int of = 32 * blockIdx.x + warp + 8 * i, row = start + lane;
      if (of < width && row < rows) values[(uint64_t)of * rows + row] = tile[warp + 8 * i][lane];
    }
    __syncthreads();
  }
}
HOST_KERNEL(scale_columns)
