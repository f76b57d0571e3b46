// The optimizer's update of one stretch of flat state, and what it follows.
#include "device.cuh"

// The factor of torch's clip_grad_norm_; NaN where loss or norm is not finite. Grid: one thread.
extern "C" __global__ void clip_factor(const double* loss, const double* square, float* factor, double max_grad_norm) {
  double norm = sqrt(*square), clipped = max_grad_norm / (norm + 1e-6);
  bool finite = *loss - *loss == 0.0 && norm - norm == 0.0;
  *factor = !finite ? __uint_as_float(0x7fc00000u) : max_grad_norm == 0.0 || clipped > 1.0 ? 1.0f : (float)clipped;
}
HOST_KERNEL(clip_factor)

// See kernels/adamw.rs: the same fields in the same order.
struct AdamWConstants {
  float decay, one_minus_beta1, beta2, one_minus_beta2, bias_correction2_sqrt, eps, step_size;
};

// One element, in the order of operations of torch's.
__device__ __forceinline__ void update(float* param, float* m, float* v, float grad, const AdamWConstants& by) {
  *m += by.one_minus_beta1 * (grad - *m);
  *v = by.beta2 * *v + by.one_minus_beta2 * grad * grad;
  *param = by.decay * *param - by.step_size * (*m / (sqrtf(*v) / by.bias_correction2_sqrt + by.eps));
}

// Updates masters and moments, writes the parameters in bf16 (params may be null), and zeroes the gradients; where *clip is not a number
// it only does that. All: [numel], and aligned to 16 bytes if `aligned`. Grid: any; a thread has four elements.
extern "C" __global__ void __launch_bounds__(256)
adamw(float* __restrict__ masters, float* __restrict__ grads, float* __restrict__ exp_avg, float* __restrict__ exp_avg_sq,
      bf16* __restrict__ params, const float* __restrict__ clip, AdamWConstants by, uint64_t numel, int aligned) {
  float factor = *clip;
  bool skips = factor != factor;
  uint64_t whole = aligned ? numel / 4 : 0;
  for (uint64_t i = first_of_grid(); i < whole; i += step_of_grid()) {
    float4* grads4 = (float4*)grads + i;
    float4 g4 = *grads4;
    *grads4 = {0, 0, 0, 0};
    if (skips) continue;
    float4 p4 = ((float4*)masters)[i], m4 = ((float4*)exp_avg)[i], v4 = ((float4*)exp_avg_sq)[i];
    update(&p4.x, &m4.x, &v4.x, g4.x * factor, by);
    update(&p4.y, &m4.y, &v4.y, g4.y * factor, by);
    update(&p4.z, &m4.z, &v4.z, g4.z * factor, by);
    update(&p4.w, &m4.w, &v4.w, g4.w * factor, by);
    ((float4*)masters)[i] = p4;
    ((float4*)exp_avg)[i] = m4;
    ((float4*)exp_avg_sq)[i] = v4;
    if (params) ((uint2*)params)[i] = {narrow2(p4.x, p4.y), narrow2(p4.z, p4.w)};
  }
  for (uint64_t i = 4 * whole + first_of_grid(); i < numel; i += step_of_grid()) {
    float grad = grads[i] * factor;
    grads[i] = 0.0f;
    if (skips) continue;
    update(masters + i, exp_avg + i, exp_avg_sq + i, grad, by);
    if (params) narrow(masters[i], params + i);
  }
}
HOST_KERNEL(adamw)

// Rounds stochastically: by the 16 low bits of `draw`. What bf16 has stays as it is, and no finite number becomes an infinity.
__device__ __forceinline__ void keep(float from, uint64_t draw, bf16* to) {
  uint32_t bits = __float_as_uint(from), up = bits + (uint32_t)(draw & 0xffff);
  if ((bits & 0x7f800000u) == 0x7f800000u) narrow(from, to);
  else *to = (bf16)(((up & 0x7f800000u) == 0x7f800000u ? bits : up) >> 16);
}
__device__ __forceinline__ void keep(float from, uint64_t draw, float* to) { *to = from; }

// Four elements at a time, aligned.
__device__ __forceinline__ void load4(const float* from, float* to) {
  float4 v = *(const float4*)from;
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}
__device__ __forceinline__ void load4(const bf16* from, float* to) {
  uint2 v = *(const uint2*)from;
  to[0] = __uint_as_float(v.x << 16), to[1] = __uint_as_float(v.x & 0xffff0000u);
  to[2] = __uint_as_float(v.y << 16), to[3] = __uint_as_float(v.y & 0xffff0000u);
}
__device__ __forceinline__ void keep4(const float* from, const uint64_t* draws, int shift, float* to) {
  *(float4*)to = {from[0], from[1], from[2], from[3]};
}
__device__ __forceinline__ void keep4(const float* from, const uint64_t* draws, int shift, bf16* to) {
  bf16 kept[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) keep(from[i], draws[i] >> shift, kept + i);
  *(uint2*)to = {kept[0] | (uint32_t)kept[1] << 16, kept[2] | (uint32_t)kept[3] << 16};
}

// As adamw, of masters and moments that may be kept in bf16, which is rounded stochastically. `params` may be null, and is where masters
// are bf16. `first`: the place of the first element among its unit's.
template <class P, class S>
__device__ __forceinline__ void adamw_of(P* masters, float* grads, S* exp_avg, S* exp_avg_sq, bf16* params, const float* clip,
                                         const AdamWConstants& by, uint64_t seed, uint64_t first, uint64_t numel, int aligned) {
  float factor = *clip;
  bool skips = factor != factor;
  uint64_t whole = aligned ? numel / 4 : 0;
  for (uint64_t i = first_of_grid(); i < whole; i += step_of_grid()) {
    float g[4], p[4], m[4], v[4];
    load4(grads + 4 * i, g);
    *(float4*)(grads + 4 * i) = {0, 0, 0, 0};
    if (skips) continue;
    load4(masters + 4 * i, p), load4(exp_avg + 4 * i, m), load4(exp_avg_sq + 4 * i, v);
    uint64_t draws[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      update(p + j, m + j, v + j, g[j] * factor, by);
      draws[j] = draw(seed, first + 4 * i + j);
    }
    keep4(p, draws, 0, masters + 4 * i);
    keep4(m, draws, 16, exp_avg + 4 * i);
    keep4(v, draws, 32, exp_avg_sq + 4 * i);
    if (params) *(uint2*)(params + 4 * i) = {narrow2(p[0], p[1]), narrow2(p[2], p[3])};
  }
  for (uint64_t i = 4 * whole + first_of_grid(); i < numel; i += step_of_grid()) {
    float grad = grads[i] * factor;
    grads[i] = 0.0f;
    if (skips) continue;
    float p = widen(masters[i]), m = widen(exp_avg[i]), v = widen(exp_avg_sq[i]);
    update(&p, &m, &v, grad, by);
    uint64_t bits = draw(seed, first + i);
    keep(p, bits, masters + i), keep(m, bits >> 16, exp_avg + i), keep(v, bits >> 32, exp_avg_sq + i);
    if (params) narrow(p, params + i);
  }
}

#define ADAMW_OF(name, P, S)                                                                                                      \
  extern "C" __global__ void __launch_bounds__(256)                                                                               \
  name(P* __restrict__ masters, float* __restrict__ grads, S* __restrict__ exp_avg, S* __restrict__ exp_avg_sq,                   \
       bf16* __restrict__ params, const float* __restrict__ clip, AdamWConstants by, uint64_t seed, uint64_t first, uint64_t numel, \
       int aligned) {                                                                                                             \
    adamw_of(masters, grads, exp_avg, exp_avg_sq, params, clip, by, seed, first, numel, aligned);                                 \
  }                                                                                                                               \
  HOST_KERNEL(name)
ADAMW_OF(adamw_bf16_moments, float, bf16)
ADAMW_OF(adamw_bf16_masters, bf16, float)
ADAMW_OF(adamw_bf16, bf16, bf16)
