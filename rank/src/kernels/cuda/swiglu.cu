// SwiGLU (Shazeer, 2020), silu(gate) * up, and its backward pass. gate_up: [rows, 2 ffn], gate first.
#include "device.cuh"

// The groups of eight columns of all rows, one after the other.
struct Groups {
  int rows, ffn;
  __device__ __forceinline__ uint64_t per_row() const { return (ffn + 7) / 8; }
  __device__ __forceinline__ uint64_t count() const { return rows * per_row(); }
};

template <class T, bool WHOLE> __device__ __forceinline__ void gate(const T* gate_up, T* y, const Groups& of) {
  for (uint64_t i = first_of_grid(); i < of.count(); i += step_of_grid()) {
    uint64_t row = i / of.per_row();
    int at = (int)(i % of.per_row()) * 8, left = of.ffn - at;
    const T* gates = gate_up + row * 2 * of.ffn + at;
    float g[8], u[8];
    load8<WHOLE>(gates, left, g);
    load8<WHOLE>(gates + of.ffn, left, u);
    // silu is rounded first, as transformers does.
#pragma unroll
    for (int j = 0; j < 8; ++j) g[j] = rounded<T>(g[j] * sigmoid(g[j])) * u[j];
    store8<WHOLE>(y + row * of.ffn + at, left, g);
  }
}

template <class T, bool WHOLE> __device__ __forceinline__ void gate_backward(T* gate_up, const T* dy, T* y, const Groups& of) {
  for (uint64_t i = first_of_grid(); i < of.count(); i += step_of_grid()) {
    uint64_t row = i / of.per_row();
    int at = (int)(i % of.per_row()) * 8, left = of.ffn - at;
    T* gates = gate_up + row * 2 * of.ffn + at;
    float g[8], u[8], d[8];
    load8<WHOLE>(gates, left, g);
    load8<WHOLE>(gates + of.ffn, left, u);
    load8<WHOLE>(dy + row * of.ffn + at, left, d);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      float s = sigmoid(g[j]), du = d[j] * g[j] * s, dg = d[j] * u[j] * s * (1.0f + g[j] * (1.0f - s));
      d[j] = rounded<T>(g[j] * s) * u[j]; // the activation, as in the forward pass
      g[j] = dg;
      u[j] = du;
    }
    if (y) store8<WHOLE>(y + row * of.ffn + at, left, d);
    store8<WHOLE>(gates, left, g);
    store8<WHOLE>(gates + of.ffn, left, u);
  }
}

// y: [rows, ffn]. Grid: any.
#define SWIGLU_FORWARD(name, T)                                                                                     \
  extern "C" __global__ void __launch_bounds__(256) name(const T* __restrict__ gate_up, T* __restrict__ y, int rows, int ffn) { \
    if (are_whole(ffn, gate_up, y)) gate<T, true>(gate_up, y, {rows, ffn});                                                       \
    else gate<T, false>(gate_up, y, {rows, ffn});                                                                   \
  }                                                                                                                 \
  HOST_KERNEL(name)
SWIGLU_FORWARD(swiglu_forward_bf16, bf16)
SWIGLU_FORWARD(swiglu_forward_f32, float)

// Turns gate_up into its own gradient, and gives the activation again where y is not null. dy, y: [rows, ffn]. Grid: any.
#define SWIGLU_BACKWARD(name, T)                                                                                    \
  extern "C" __global__ void __launch_bounds__(256)                                                                 \
  name(T* __restrict__ gate_up, const T* __restrict__ dy, T* __restrict__ y, int rows, int ffn) {                   \
    if (are_whole(ffn, gate_up, dy, y)) gate_backward<T, true>(gate_up, dy, y, {rows, ffn});                        \
    else gate_backward<T, false>(gate_up, dy, y, {rows, ffn});                                                      \
  }                                                                                                                 \
  HOST_KERNEL(name)
SWIGLU_BACKWARD(swiglu_backward_bf16, bf16)
SWIGLU_BACKWARD(swiglu_backward_f32, float)
