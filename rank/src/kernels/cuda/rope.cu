// Rotary embedding (Su et al., 2021) in the half-split layout: in place, or on the way from heads that lie apart.
#include "device.cuh"

// Turns eight pairs (a, b) by angles of cosines c and sines s.
__device__ __forceinline__ void turn8(float* a, float* b, const float* c, const float* s, float sign) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    float y = sign * s[j], turned = a[j] * c[j] - b[j] * y;
    b[j] = b[j] * c[j] + a[j] * y;
    a[j] = turned;
  }
}

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
    turn8(a, b, c, s, by.sign);
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

// Heads of a batch of samples of one length, wherever they lie: elements from one sample, token and head to the next. A head's own
// elements lie side by side.
template <class T> struct Heads {
  const T* at;
  int64_t sample, token, head;
};
// Tokens of a sample, heads of q, heads of k and of v, and half the elements of a head.
struct HeadSizes {
  int length, queries, groups, half;
};

// A block's token.
template <class T, bool WHOLE>
__device__ __forceinline__ void join(const Heads<T>& q, const Heads<T>& k, const Heads<T>& v, T* qkv, const T* cos, const T* sin, const HeadSizes& of) {
  int token = blockIdx.x, sample = token / of.length, position = token % of.length;
  int turned = of.queries + of.groups, width = turned + of.groups, groups = (of.half + 7) / 8;
  qkv += (uint64_t)token * width * 2 * of.half;
  cos += (uint64_t)token * of.half;
  sin += (uint64_t)token * of.half;
  for (int i = threadIdx.x; i < width * groups; i += blockDim.x) {
    int head = i / groups, at = i % groups * 8, left = of.half - at;
    int first = head < of.queries ? 0 : head < turned ? of.queries : turned;
    const Heads<T>& from = head < of.queries ? q : head < turned ? k : v;
    const T* source = from.at + sample * from.sample + position * from.token + (head - first) * from.head + at;
    T* to = qkv + (uint64_t)head * 2 * of.half + at;
    float a[8], b[8];
    load8<WHOLE>(source, left, a);
    load8<WHOLE>(source + of.half, left, b);
    if (head < turned) {
      float c[8], s[8];
      load8<WHOLE>(cos + at, left, c);
      load8<WHOLE>(sin + at, left, s);
      turn8(a, b, c, s, 1.0f);
    }
    store8<WHOLE>(to, left, a);
    store8<WHOLE>(to + of.half, left, b);
  }
}

// Whether heads can be read eight elements at a time.
template <class T> __device__ __forceinline__ bool are_whole_heads(const Heads<T>& heads) {
  return ((uint64_t)heads.at & 15) == 0 && ((heads.sample | heads.token | heads.head) & 7) == 0;
}

// Joins heads of q, k and v in one tensor and turns those of q and k. qkv: [tokens, queries + 2 groups, 2 half], which none of the
// heads lie in; cos, sin: [tokens, half]. Grid: a block for each token.
#define JOIN_ROTATED(name, T)                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256)                                                                            \
  name(Heads<T> q, Heads<T> k, Heads<T> v, T* __restrict__ qkv, const T* __restrict__ cos, const T* __restrict__ sin, HeadSizes of) { \
    bool whole = are_whole_heads(q) && are_whole_heads(k) && are_whole_heads(v) && are_whole(of.half, qkv, cos, sin);          \
    if (whole) join<T, true>(q, k, v, qkv, cos, sin, of);                                                                      \
    else join<T, false>(q, k, v, qkv, cos, sin, of);                                                                           \
  }                                                                                                                            \
  HOST_KERNEL(name)
JOIN_ROTATED(join_rotated_bf16, bf16)
JOIN_ROTATED(join_rotated_f32, float)
