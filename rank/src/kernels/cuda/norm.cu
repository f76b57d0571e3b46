// RMSNorm (Zhang and Sennrich, 2019) over rows of `width` elements, and its backward pass. w: [width].
#include "device.cuh"

// What the forward pass reads and writes; see below.
template <class T> struct NormRow {
  const T *x, *residual, *w;
  T *sum, *y;
  float* rstd;
  int width;
  float eps;
};

// A block's row. Each thread has every blockDim.x-th group of eight. ADDS: there is a residual.
template <class T, bool WHOLE, bool ADDS> __device__ __forceinline__ void normalise(NormRow<T> p, float* scratch) {
  uint64_t start = (uint64_t)blockIdx.x * p.width;
  float squares = 0.0f;
  for (int at = 8 * threadIdx.x; at < p.width; at += 8 * blockDim.x) {
    float v[8];
    load8<WHOLE>(p.x + start + at, p.width - at, v);
    if (ADDS) {
      float past[8];
      load8<WHOLE>(p.residual + start + at, p.width - at, past);
#pragma unroll
      for (int j = 0; j < 8; ++j) v[j] = rounded<T>(v[j] + past[j]);
      store8<WHOLE>(p.sum + start + at, p.width - at, v);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) squares += v[j] * v[j];
  }
  float scale = 1.0f / sqrtf(block_sum(squares, scratch) * (1.0f / p.width) + p.eps);
  if (threadIdx.x == 0) p.rstd[blockIdx.x] = scale;
  const T* row = ADDS ? p.sum : p.x; // from the cache: the row was read or written above, by this thread
  for (int at = 8 * threadIdx.x; at < p.width; at += 8 * blockDim.x) {
    float v[8], u[8];
    load8<WHOLE>(row + start + at, p.width - at, v);
    load8<WHOLE>(p.w + at, p.width - at, u);
    // The normalised value is rounded first, as transformers does.
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] = rounded<T>(v[j] * scale) * u[j];
    store8<WHOLE>(p.y + start + at, p.width - at, v);
  }
}

// Grid: a block for each row. x, y: [rows, width], rstd: [rows].
#define RMS_NORM_FORWARD(name, T)                                                                                           \
  extern "C" __global__ void __launch_bounds__(512)                                                                         \
  name(const T* __restrict__ x, const T* __restrict__ w, T* __restrict__ y, float* __restrict__ rstd, int width, float eps) { \
    __shared__ float scratch[32];                                                                                           \
    NormRow<T> row = {x, nullptr, w, nullptr, y, rstd, width, eps};                                                         \
    if (are_whole(width, x, w, y)) normalise<T, true, false>(row, scratch);                                                 \
    else normalise<T, false, false>(row, scratch);                                                                          \
  }                                                                                                                         \
  HOST_KERNEL(name)
RMS_NORM_FORWARD(rms_norm_forward_bf16, bf16)
RMS_NORM_FORWARD(rms_norm_forward_f32, float)

// As above, of x + residual, which x holds afterwards: [rows, width] each. Written and read again: x is not restricted.
#define ADD_RMS_NORM_FORWARD(name, T)                                                                                       \
  extern "C" __global__ void __launch_bounds__(512)                                                                         \
  name(T* x, const T* __restrict__ residual, const T* __restrict__ w, T* __restrict__ y, float* __restrict__ rstd, int width, \
       float eps) {                                                                                                         \
    __shared__ float scratch[32];                                                                                           \
    NormRow<T> row = {x, residual, w, x, y, rstd, width, eps};                                                              \
    if (are_whole(width, x, residual, w, y)) normalise<T, true, true>(row, scratch);                                        \
    else normalise<T, false, true>(row, scratch);                                                                           \
  }                                                                                                                         \
  HOST_KERNEL(name)
ADD_RMS_NORM_FORWARD(add_rms_norm_forward_bf16, bf16)
ADD_RMS_NORM_FORWARD(add_rms_norm_forward_f32, float)

// What the backward pass reads and writes; see below.
template <class T> struct NormGrad {
  const T *x, *w;
  const float* rstd;
  const T *dy, *residual;
  T* dx;
  float* dw_parts;
  int rows, width;
};

// What a thread has of a row: x in v, dy in d, and dy w as it is rounded in g.
template <class T, bool WHOLE>
__device__ __forceinline__ void load_products(const NormGrad<T>& p, uint64_t start, int at, float* v, float* d, float* g) {
  float u[8];
  load8<WHOLE>(p.x + start + at, p.width - at, v);
  load8<WHOLE>(p.dy + start + at, p.width - at, d);
  load8<WHOLE>(p.w + at, p.width - at, u); // from the cache: each row needs it
#pragma unroll
  for (int j = 0; j < 8; ++j) g[j] = rounded<T>(d[j] * u[j]);
}

// A block's rows, in order. Each thread has GROUPS groups of eight columns, whose part of dw it keeps in registers. A lone group's
// operands stay there too; several are read from the cache a second time.
template <class T, bool WHOLE, int GROUPS> __device__ __forceinline__ void normalise_backward(const NormGrad<T>& p, float* scratch) {
  float dw[GROUPS][8] = {}, v[8], d[8], g[8];
  auto column = [](int group) { return 8 * (int)(group * blockDim.x + threadIdx.x); };
  for (int row = blockIdx.x; row < p.rows; row += gridDim.x) {
    uint64_t start = (uint64_t)row * p.width;
    float scale = p.rstd[row], sum = 0.0f;
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
      int at = column(group);
      if (at >= p.width) continue;
      load_products<T, WHOLE>(p, start, at, v, d, g);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        dw[group][j] += d[j] * v[j] * scale;
        sum += g[j] * v[j];
      }
    }
    float coefficient = scale * scale * scale * block_sum(sum, scratch) * (1.0f / p.width);
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
      int at = column(group);
      if (at >= p.width) continue;
      if (GROUPS > 1) load_products<T, WHOLE>(p, start, at, v, d, g);
#pragma unroll
      for (int j = 0; j < 8; ++j) g[j] = g[j] * scale - v[j] * coefficient;
      if (p.residual) {
        float past[8];
        load8<WHOLE>(p.residual + start + at, p.width - at, past);
#pragma unroll
        for (int j = 0; j < 8; ++j) g[j] = rounded<T>(g[j]) + past[j];
      }
      store8<WHOLE>(p.dx + start + at, p.width - at, g);
    }
  }
#pragma unroll
  for (int group = 0; group < GROUPS; ++group) {
    int at = column(group);
    if (at < p.width) store8<false>(p.dw_parts + (uint64_t)blockIdx.x * p.width + at, p.width - at, dw[group]);
  }
}

// dx = rstd (dy w) - x rstd^3/width sum(dy w x) + residual, and dw = sum over rows of dy x rstd, in parts: dw_parts is
// [gridDim.x, width], to be added up in order by `add_rows`. x, dy, dx, residual (or null): [rows, width]. residual may be dy.
// dx is neither x nor dy. Grid: any number of blocks; 4 * 8 * blockDim.x >= width.
#define RMS_NORM_BACKWARD(name, T)                                                                                         \
  extern "C" __global__ void __launch_bounds__(512)                                                                        \
  name(const T* x, const T* w, const float* rstd, const T* dy, const T* residual, T* dx, float* dw_parts, int rows, int width) { \
    __shared__ float scratch[32];                                                                                          \
    NormGrad<T> pass = {x, w, rstd, dy, residual, dx, dw_parts, rows, width};                                              \
    bool fits = width <= 8 * (int)blockDim.x;                                                                              \
    if (!are_whole(width, x, w, dy, residual, dx)) normalise_backward<T, false, 4>(pass, scratch);                                                    \
    else if (fits) normalise_backward<T, true, 1>(pass, scratch);                                                          \
    else normalise_backward<T, true, 4>(pass, scratch);                                                                    \
  }                                                                                                                        \
  HOST_KERNEL(name)
RMS_NORM_BACKWARD(rms_norm_backward_bf16, bf16)
RMS_NORM_BACKWARD(rms_norm_backward_f32, float)
