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
