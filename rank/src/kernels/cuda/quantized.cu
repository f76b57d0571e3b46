// Frozen matrices out of few bits (proto/src/quantized), on their way to a product.
#include "device.cuh"

// The numbers of 4-bit NormalFloat (Dettmers et al., 2023).
static __device__ const float NF4[16] = {
    -1.0f, -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f, 0.0f,
    0.0795803f, 0.1609302f, 0.2461123f, 0.33791524f, 0.44070983f, 0.562617f, 0.72295684f, 1.0f,
};
// Elements that have a scale in common, and scales that have one in common themselves.
#define ELEMENTS_OF_BLOCK 64
#define SCALES_PER_SCALE 256
// Before the scales of scales: the mean of all scales, and the numbers of the map.
#define BEFORE_SCALES 257

// Block i of a part is block first + i / run * stride + i % run of the whole matrix.
struct BlockPlaces {
  uint32_t first, run, stride;
};

// codes: [numel / 2], the first of two in the upper half; scale_codes: a code for each block's scale; scales: [257 + scales of scales].
struct FourBits {
  const uint8_t *codes, *scale_codes;
  const float* scales;
  BlockPlaces places;
  uint64_t numel;

  __device__ __forceinline__ float scale_of(uint64_t element) const {
    uint32_t block = (uint32_t)(element / ELEMENTS_OF_BLOCK);
    uint32_t place = places.first + block / places.run * places.stride + block % places.run;
    return scales[1 + scale_codes[block]] * scales[BEFORE_SCALES + place / SCALES_PER_SCALE] + scales[0];
  }

  // Eight codes from a multiple of eight on, or those that are there, from the lowest byte on.
  __device__ __forceinline__ uint32_t eight_from(uint64_t element) const {
    const uint8_t* from = codes + element / 2;
    if (element + 8 <= numel) return *(const uint32_t*)from;
    uint32_t found = 0;
    for (uint32_t byte = 0; byte < (numel - element + 1) / 2; ++byte) found |= (uint32_t)from[byte] << 8 * byte;
    return found;
  }
};

// to[i] = the number of code i times the scale of its block. to: [numel].
template <class T> __device__ __forceinline__ void write_numbers(const FourBits& of, T* to, const float* numbers) {
  bool is_aligned = ((uint64_t)to & 15) == 0;
  for (uint64_t i = 8 * first_of_grid(); i < of.numel; i += 8 * step_of_grid()) {
    float scale = of.scale_of(i);
    uint32_t eight = of.eight_from(i);
    float v[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) v[k] = numbers[eight >> (8 * (k / 2) + (k % 2 ? 0 : 4)) & 15] * scale;
    uint64_t left = of.numel - i;
    if (is_aligned && left >= 8) store8<true>(to + i, 8, v);
    else store8<false>(to + i, left < 8 ? (int)left : 8, v);
  }
}

// Codes begin at a multiple of 4 bytes. Grid: any, of 16 threads and more.
#define DEQUANTIZE_FOUR_BITS(name, T)                                                                                          \
  extern "C" __global__ void __launch_bounds__(256)                                                                            \
  name(const uint8_t* __restrict__ codes, const uint8_t* __restrict__ scale_codes, const float* __restrict__ scales,           \
       T* __restrict__ to, BlockPlaces places, uint64_t numel) {                                                               \
    __shared__ float numbers[16];                                                                                              \
    if (threadIdx.x < 16) numbers[threadIdx.x] = NF4[threadIdx.x];                                                             \
    __syncthreads();                                                                                                           \
    write_numbers(FourBits{codes, scale_codes, scales, places, numel}, to, numbers);                                           \
  }                                                                                                                            \
  HOST_KERNEL(name)
DEQUANTIZE_FOUR_BITS(dequantize_nf4_bf16, bf16)
DEQUANTIZE_FOUR_BITS(dequantize_nf4_f32, float)

// A block's row: codes, as many as `width`, times the row's scale / 127.
template <class T, bool WHOLE>
__device__ __forceinline__ void write_row(const uint8_t* codes, float scale, T* to, int width) {
  for (int at = 8 * threadIdx.x; at < width; at += 8 * blockDim.x) {
    uint2 eight = {0, 0};
    if (WHOLE) eight = *(const uint2*)(codes + at);
    float v[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      uint32_t code = (k < 4 ? eight.x : eight.y) >> 8 * (k % 4) & 255;
      if (!WHOLE) code = at + k < width ? codes[at + k] : 0;
      v[k] = (float)(signed char)code * scale * (1.0f / 127.0f);
    }
    store8<WHOLE>(to + at, width - at, v);
  }
}

// codes: [rows, width] signed, from a multiple of 8 bytes on; to: [rows, width], scales: [rows]. Grid: a block of whole warps for each
// row.
#define DEQUANTIZE_EIGHT_BITS(name, T)                                                                                         \
  extern "C" __global__ void __launch_bounds__(256)                                                                            \
  name(const uint8_t* __restrict__ codes, const float* __restrict__ scales, T* __restrict__ to, int width) {                   \
    codes += (uint64_t)blockIdx.x * width;                                                                                     \
    to += (uint64_t)blockIdx.x * width;                                                                                        \
    if (are_whole(width, to)) write_row<T, true>(codes, scales[blockIdx.x], to, width);                                        \
    else write_row<T, false>(codes, scales[blockIdx.x], to, width);                                                            \
  }                                                                                                                            \
  HOST_KERNEL(name)
DEQUANTIZE_EIGHT_BITS(dequantize_int8_bf16, bf16)
DEQUANTIZE_EIGHT_BITS(dequantize_int8_f32, float)
