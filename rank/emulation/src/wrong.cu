// Kernels that are wrong: what the emulation is to find.
#include "device.cuh"

// Lacks the barrier between writing shared memory and reading it.
extern "C" __global__ void wrong_no_barrier(const float* from, float* to) {
  __shared__ float all[64];
  all[threadIdx.x] = from[threadIdx.x];
  to[threadIdx.x] = all[63 - threadIdx.x];
}
HOST_KERNEL(wrong_no_barrier)

// A shuffle that only half of a warp reaches.
extern "C" __global__ void wrong_half_shuffle(float* to) {
  if (threadIdx.x < 16) to[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}
HOST_KERNEL(wrong_half_shuffle)
