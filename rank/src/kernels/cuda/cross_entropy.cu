// Token cross-entropy over rows of logits, and the logits' gradient in their own place. Rows are whole, or one rank's part of the
// vocabulary: then the work comes in steps, between which the ranks exchange a number or two a row. A row begins every `stride` elements.
#include "device.cuh"

// A row's logits as the threads of a block see them: each has every blockDim.x-th group of eight.
template <class T, bool WHOLE> struct Row {
  T* logits;
  int columns;

  __device__ __forceinline__ int first() const { return 8 * threadIdx.x; }
  __device__ __forceinline__ int step() const { return 8 * blockDim.x; }
  __device__ __forceinline__ int left(int at) const { return columns - at; }

  // The largest logit of all, for every thread; minus infinity where there is none. A NaN is passed over: it shows in the sum.
  __device__ __forceinline__ float maximum(float* scratch) const {
    const float NONE = -__uint_as_float(0x7f800000u);
    float most = NONE;
    for (int at = first(); at < columns; at += step()) {
      float v[8];
      load8<WHOLE>(logits + at, left(at), v);
#pragma unroll
      for (int j = 0; j < 8; ++j)
        if (j < left(at)) most = Larger()(most, v[j]);
    }
    return block_reduce(most, NONE, scratch, Larger());
  }

  // The sum of e^(logit - most), for every thread.
  __device__ __forceinline__ float exponentials(float most, float* scratch) const {
    float sum = 0.0f;
    for (int at = first(); at < columns; at += step()) {
      float v[8];
      load8<WHOLE>(logits + at, left(at), v);
#pragma unroll
      for (int j = 0; j < 8; ++j)
        if (j < left(at)) sum += exp_f32(v[j] - most);
    }
    return block_sum(sum, scratch);
  }

  // Both at once: reads the logits one time less. What each thread has seen so far is scaled when it meets a larger one.
  __device__ __forceinline__ float exponentials_and_maximum(float* most_of_all, float* scratch) const {
    const float NONE = -3.4e38f;
    float most = NONE, sum = 0.0f;
    for (int at = first(); at < columns; at += step()) {
      float v[8];
      load8<WHOLE>(logits + at, left(at), v);
      float largest = v[0];
#pragma unroll
      for (int j = 1; j < 8; ++j)
        if (j < left(at)) largest = Larger()(largest, v[j]);
      if (largest > most) {
        sum *= exp_f32(most - largest);
        most = largest;
      }
#pragma unroll
      for (int j = 0; j < 8; ++j)
        if (j < left(at)) sum += exp_f32(v[j] - most);
    }
    float whole = block_reduce(most, NONE, scratch, Larger());
    *most_of_all = whole;
    return block_sum(sum * exp_f32(most - whole), scratch);
  }

  // Turns logits into e^(logit - most) factor, less 1 at `target`.
  __device__ __forceinline__ void gradient(float most, float factor, int64_t target) const {
    for (int at = first(); at < columns; at += step()) {
      float v[8];
      load8<WHOLE>(logits + at, left(at), v);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        v[j] = exp_f32(v[j] - most) * factor;
        if (at + j == target) v[j] -= 1.0f;
      }
      store8<WHOLE>(logits + at, left(at), v);
    }
  }
};

__device__ __forceinline__ float log_f32(float x) { return (float)log((double)x); }

// The row of this block. Its target's logit is read before anybody writes.
template <class T, bool WHOLE>
__device__ __forceinline__ void row_loss(T* logits, const int64_t* targets, float* losses, int columns, uint64_t stride, bool turns,
                                         float* scratch) {
  Row<T, WHOLE> row = {logits + blockIdx.x * stride, columns};
  int64_t target = targets[blockIdx.x];
  float of_target = widen(row.logits[target]), most;
  float sum = row.exponentials_and_maximum(&most, scratch);
  if (threadIdx.x == 0) losses[blockIdx.x] = log_f32(sum) + most - of_target;
  if (turns) row.gradient(most, 1.0f / sum, target);
}

// losses = log-sum-exp - the target's logit. If `turns`, logits turn into softmax(logits) - onehot(target). logits: [rows, columns],
// losses: [rows]. Grid: a block for each row.
#define CROSS_ENTROPY(name, T)                                                                                                    \
  extern "C" __global__ void __launch_bounds__(1024)                                                                              \
  name(T* __restrict__ logits, const int64_t* __restrict__ targets, float* __restrict__ losses, int columns, uint64_t stride, int turns) { \
    __shared__ float scratch[32];                                                                                                 \
    if (stride % 8 == 0 && are_whole(columns, logits)) row_loss<T, true>(logits, targets, losses, columns, stride, turns != 0, scratch);     \
    else row_loss<T, false>(logits, targets, losses, columns, stride, turns != 0, scratch);                                       \
  }                                                                                                                               \
  HOST_KERNEL(name)
CROSS_ENTROPY(cross_entropy_bf16, bf16)
CROSS_ENTROPY(cross_entropy_f32, float)

// One rank's part of a row, which may have no columns, in steps.
template <class T, bool WHOLE> struct PartOfRow : Row<T, WHOLE> {
  __device__ __forceinline__ PartOfRow(T* logits, int columns, uint64_t stride) : Row<T, WHOLE>{logits + blockIdx.x * stride, columns} {}

  __device__ __forceinline__ void write_maximum(double* maxima, float* scratch) const {
    float most = this->maximum(scratch);
    if (threadIdx.x == 0) maxima[blockIdx.x] = most;
  }

  __device__ __forceinline__ void write_sums(const double* maxima, const int64_t* columns_of, double* sums, float* scratch) const {
    float sum = this->exponentials((float)maxima[blockIdx.x], scratch);
    int64_t target = columns_of[blockIdx.x];
    if (threadIdx.x != 0) return;
    sums[blockIdx.x] = sum;
    sums[gridDim.x + blockIdx.x] = target >= 0 && target < this->columns ? widen(this->logits[target]) : 0.0f;
  }

  __device__ __forceinline__ void turn(const double* maxima, const double* sums, const int64_t* columns_of) const {
    this->gradient((float)maxima[blockIdx.x], (float)(1.0 / sums[blockIdx.x]), columns_of[blockIdx.x]);
  }
};

#define OF_PART(T, call)                                                                      \
  if (stride % 8 == 0 && are_whole(columns, logits)) PartOfRow<T, true>(logits, columns, stride).call; \
  else PartOfRow<T, false>(logits, columns, stride).call;

// Over parts, step 1: the largest logit of each row of this part. maxima: [rows]. Grid: a block for each row, here and below.
#define ROW_MAXIMA(name, T)                                                                                                       \
  extern "C" __global__ void __launch_bounds__(1024)                                                                              \
  name(const T* __restrict__ logits, double* __restrict__ maxima, int columns, uint64_t stride) {                                 \
    __shared__ float scratch[32];                                                                                                 \
    OF_PART(const T, write_maximum(maxima, scratch))                                                                              \
  }                                                                                                                               \
  HOST_KERNEL(name)
ROW_MAXIMA(row_maxima_bf16, bf16)
ROW_MAXIMA(row_maxima_f32, float)

// Step 2: of each row of this part the sum of e^(logit - maximum), and its target's logit, 0 where that is in another part.
// maxima: [rows], over all parts; columns_of: [rows], each row's target counted from this part's first column; sums: [2, rows].
#define ROW_SUMS(name, T)                                                                                                         \
  extern "C" __global__ void __launch_bounds__(1024)                                                                              \
  name(const T* __restrict__ logits, const double* __restrict__ maxima, const int64_t* __restrict__ columns_of, double* __restrict__ sums, \
       int columns, uint64_t stride) {                                                                                            \
    __shared__ float scratch[32];                                                                                                 \
    OF_PART(const T, write_sums(maxima, columns_of, sums, scratch))                                                               \
  }                                                                                                                               \
  HOST_KERNEL(name)
ROW_SUMS(row_sums_bf16, bf16)
ROW_SUMS(row_sums_f32, float)

// Step 3: losses of whole rows. sums: over all parts. Grid: any; a thread for each row.
extern "C" __global__ void row_losses(const double* __restrict__ maxima, const double* __restrict__ sums, float* __restrict__ losses, int rows) {
  for (uint64_t row = first_of_grid(); row < (uint64_t)rows; row += step_of_grid())
    losses[row] = (float)(log(sums[row]) + maxima[row] - sums[rows + row]);
}
HOST_KERNEL(row_losses)

// Step 4: turns this part's logits into gradients.
#define ROW_GRADIENTS(name, T)                                                                                                    \
  extern "C" __global__ void __launch_bounds__(1024)                                                                              \
  name(T* __restrict__ logits, const double* __restrict__ maxima, const double* __restrict__ sums, const int64_t* __restrict__ columns_of, \
       int columns, uint64_t stride) {                                                                                            \
    OF_PART(T, turn(maxima, sums, columns_of))                                                                                    \
  }                                                                                                                               \
  HOST_KERNEL(name)
ROW_GRADIENTS(row_gradients_bf16, bf16)
ROW_GRADIENTS(row_gradients_f32, float)
