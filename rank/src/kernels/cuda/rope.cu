// Rotary embedding (Su et al., 2021) in place, in the half-split layout.
#include "device.cuh"

struct Turn {
  int heads, width, half;
  float sign;
};

// A block's token.
template <class T, bool WHOLE> __device__ __forceinline__ void turn(T* x, const T* cos, const T* sin, const Turn& by) {
  x += (uint64_t)blockIdx.x * by.width * 2 * by.half;
  cos += (uint64_t)blockIdx.x * by.half;
  sin += (uint64_t)blockIdx.x * by.half;
  int groups = (by.half + 7) / 8;
  for (int i = threadIdx.x; i < by.heads * groups; i += blockDim.x) {
    int k = i % groups * 8, left = by.half - k;
    T* first = x + i / groups * 2 * by.half + k;
    float a[8], b[8], c[8], s[8];
    load8<WHOLE>(first, left, a);
    load8<WHOLE>(first + by.half, left, b);
    load8<WHOLE>(cos + k, left, c);
    load8<WHOLE>(sin + k, left, s);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      float y = by.sign * s[j], turned = a[j] * c[j] - b[j] * y;
      b[j] = b[j] * c[j] + a[j] * y;
      a[j] = turned;
    }
    store8<WHOLE>(first, left, a);
    store8<WHOLE>(first + by.half, left, b);
  }
}

// Turns pairs (x[k], x[k + half]) of the first `heads` of `width` heads of each token; sign -1 turns back. x: [tokens, width, 2 half];
// cos, sin: [tokens, half]. Grid: a block for each token.
#define ROTATE(name, T)                                                                                                          \
  extern "C" __global__ void __launch_bounds__(256)                                                                              \
  name(T* __restrict__ x, const T* __restrict__ cos, const T* __restrict__ sin, int heads, int width, int half, float sign) {      \
    Turn by = {heads, width, half, sign};                                                                                        \
    if (are_whole(half, x, cos, sin)) turn<T, true>(x, cos, sin, by);                                                                           \
    else turn<T, false>(x, cos, sin, by);                                                                                        \
  }                                                                                                                              \
  HOST_KERNEL(name)
ROTATE(rotate_bf16, bf16)
ROTATE(rotate_f32, float)
