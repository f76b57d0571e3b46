// What kernels share: element types, eight elements at a time, sums over a block in a fixed order, exp.
//
// Kernels are compiled by NVRTC for the device that is found, and as C++ for the emulation (rank/emulation), which gives the same
// bits: arithmetic is fp32 without contraction (--fmad=false), and nothing calls the device's math library but sqrtf and fp64 log.
#pragma once

#ifdef __CUDACC_RTC__
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
// The emulation's registration of a kernel; a device finds kernels by their names.
#define HOST_KERNEL(kernel)
#else
#include "cuda_host.h"
#endif

// bf16 is its bits.
typedef uint16_t bf16;

__device__ __forceinline__ float widen(bf16 v) { return __uint_as_float((uint32_t)v << 16); }
__device__ __forceinline__ float widen(float v) { return v; }

// Two values rounded to nearest even; the first is the low half. NaN becomes 0x7fff.
__device__ __forceinline__ uint32_t narrow2(float a, float b) {
#ifdef __CUDACC_RTC__
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(b), "f"(a));
  return pair;
#else
  auto one = [](float f) -> uint32_t {
    uint32_t bits = __float_as_uint(f);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  };
  return one(a) | one(b) << 16;
#endif
}

__device__ __forceinline__ void narrow(float from, bf16* to) { *to = (bf16)narrow2(from, 0.0f); }
__device__ __forceinline__ void narrow(float from, float* to) { *to = from; }

// The value that `from` has once it is stored.
template <class T> __device__ __forceinline__ float rounded(float from) {
  T stored;
  narrow(from, &stored);
  return widen(stored);
}

// Whether rows of `width` elements can be read eight at a time, wherever they are: weights lie in flat buffers without gaps.
template <class... P> __device__ __forceinline__ bool are_whole(int width, P... pointers) {
  return width % 8 == 0 && ((0 | ... | (uint64_t)pointers) & 15) == 0;
}

// Eight elements at a time. WHOLE: there are eight, and they are aligned to 16 bytes; else `left` says how many there are, from 1
// on, and those that are not there are zero.
template <bool WHOLE> __device__ __forceinline__ void load8(const bf16* from, int left, float* to) {
  if (WHOLE) {
    uint4 v = *(const uint4*)from;
    uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[2 * i] = __uint_as_float(pairs[i] << 16);
      to[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = i < left ? widen(from[i]) : 0.0f;
  }
}
template <bool WHOLE> __device__ __forceinline__ void load8(const float* from, int left, float* to) {
  if (WHOLE) {
    float4 a = *(const float4*)from, b = *(const float4*)(from + 4);
    to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = i < left ? from[i] : 0.0f;
  }
}
template <bool WHOLE> __device__ __forceinline__ void store8(bf16* to, int left, const float* from) {
  if (WHOLE) {
    *(uint4*)to = {narrow2(from[0], from[1]), narrow2(from[2], from[3]), narrow2(from[4], from[5]), narrow2(from[6], from[7])};
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i < left) narrow(from[i], to + i);
  }
}
template <bool WHOLE> __device__ __forceinline__ void store8(float* to, int left, const float* from) {
  if (WHOLE) {
    *(float4*)to = {from[0], from[1], from[2], from[3]};
    *(float4*)(to + 4) = {from[4], from[5], from[6], from[7]};
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (i < left) to[i] = from[i];
  }
}
template <class T> __device__ __forceinline__ void round8(float* v) {
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = rounded<T>(v[i]);
}

// One value from each thread of a block of whole warps to one for all: the same bits on every thread and in every run.
// `scratch`: one element for each warp, in shared memory; when this returns it may be used again. `none`: what changes nothing.
template <class V, class Op> __device__ __forceinline__ V block_reduce(V v, V none, V* scratch, Op op) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes >>= 1) v = op(v, __shfl_xor_sync(0xffffffffu, v, lanes));
  int warps = blockDim.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  v = lane < warps ? scratch[lane] : none;
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes >>= 1) v = op(v, __shfl_xor_sync(0xffffffffu, v, lanes));
  __syncthreads();
  return v;
}
struct Add {
  template <class V> __device__ __forceinline__ V operator()(V a, V b) const { return a + b; }
};
// NaN if the first is: a row with a NaN shows it in its sum, whatever its maximum.
struct Larger {
  __device__ __forceinline__ float operator()(float a, float b) const { return b > a ? b : a; }
};
template <class V> __device__ __forceinline__ V block_sum(V v, V* scratch) { return block_reduce(v, (V)0, scratch, Add()); }

// The place of this thread in a loop over all of the grid's, and its step.
__device__ __forceinline__ uint64_t first_of_grid() { return (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ uint64_t step_of_grid() { return (uint64_t)gridDim.x * blockDim.x; }

// Bits by place and seeds of two numbers, as kernels/draws.rs has them.
__device__ __forceinline__ uint64_t mix(uint64_t z) {
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ z >> 27) * 0x94d049bb133111ebull;
  return z ^ z >> 31;
}
__device__ __forceinline__ uint64_t draw(uint64_t seed, uint64_t place) { return mix(seed + (place + 1) * 0x9e3779b97f4a7c15ull); }
__device__ __forceinline__ uint64_t seed_of(uint64_t one, uint64_t other) { return mix(mix(one + 0x9e3779b97f4a7c15ull) ^ other); }

__device__ __forceinline__ float power_of_two(int n) { return __uint_as_float((uint32_t)(n + 127) << 23); }

// e^x by the same steps as on a CPU (kernels/cpu/element.rs), so that both have the same bits: Cody and Waite's reduction to 2^n e^r
// with |r| <= ln 2 / 2, and a polynomial for e^r. Within 2 units in the last place; NaN stays NaN.
__device__ __forceinline__ float exp_f32(float x) {
  const float ROUND = 12582912.0f; // adding it rounds to a whole number, which then stands in the low bits
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  float shifted = x * 1.44269502f + ROUND;
  float n = shifted - ROUND;
  float r = (x - n * 0.6933594f) - n * -2.1219444e-4f;
  float p = 1.984127e-4f;
  p = p * r + 1.3888889e-3f;
  p = p * r + 8.333334e-3f;
  p = p * r + 4.1666668e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  int whole = (int)(__float_as_uint(shifted) - __float_as_uint(ROUND));
  int half = whole >> 1; // in two factors: n reaches below the normal exponents and above them
  return p * power_of_two(half) * power_of_two(whole - half);
}
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + exp_f32(-x)); }
