// CUDA C++ as C++ on the host, for tests of kernels on machines without a GPU: the blocks of a grid run one after the other, and the
// threads of a block are fibers of one host thread, each of which runs until it comes to a barrier or a shuffle.
//
// What is found beside wrong results:
// - a shuffle that not all lanes of its mask reach, one by a lane outside it, and a barrier that some threads wait at while others wait at
//   a shuffle, end the process with a message (a barrier that threads which have ended do not reach is passed over);
// - shared memory that is read before it is written holds NaN;
// - a missing barrier: `order` changes the order in which threads run, and no result may change with it.
//
// Arithmetic is the host's: fp32 and fp64 of IEEE 754, as on the device where contraction is off on both sides.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <type_traits>
#include <utility>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("cuda_shared")))

struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };

// The ends of the section of all kernels' shared memory, from the linker.
extern char __start_cuda_shared[] __attribute__((weak)), __stop_cuda_shared[] __attribute__((weak));

namespace cuda_host {

struct Dim { unsigned x, y, z; };

constexpr unsigned THREADS_MAX = 1024, WARP = 32;
constexpr size_t STACK_BYTES = 64 << 10;

// Fibers

#if defined(__x86_64__)
// Keeps what the System V ABI wants kept on the stack of who leaves, and goes on where the other has left.
asm(R"(.text
.weak cuda_host_switch
.type cuda_host_switch, @function
cuda_host_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov (%rsi), %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
)");
extern "C" void cuda_host_switch(void** left, void** taken);

struct Context {
  void* stack_pointer;
  void start_at(char* stack, void (*entry)()) {
    void** top = (void**)((uintptr_t)(stack + STACK_BYTES) & ~(uintptr_t)15);
    *--top = nullptr;
    *--top = (void*)entry; // the switch returns into it, with the stack aligned as after a call
    stack_pointer = top - 6;
  }
  void switch_to(Context& other) { cuda_host_switch(&stack_pointer, &other.stack_pointer); }
};
#else
struct Context {
  ucontext_t context;
  void start_at(char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack = {stack, 0, STACK_BYTES};
    makecontext(&context, entry, 0);
  }
  void switch_to(Context& other) { swapcontext(&context, &other.context); }
};
#endif

// Threads that wait for each other. When the last has come, the generation changes, and all go on.
struct Meeting { unsigned arrived = 0, generation = 0; };

// Two sets of slots: who is at its next exchange must not overwrite what others still read of this one.
struct Warp { Meeting meeting; uint64_t slots[2][WARP]; };

struct Thread {
  Context context;
  Dim index;
  unsigned number;
  bool is_done;
  const Meeting* waits_at; // null: it can run
  unsigned since;          // the meeting's generation when it came
};

// A launch under way. One host thread at a time: the caller sees to it.
struct Launch {
  void (*run)(void*);
  void* kernel;
  Dim grid, block, block_index;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  Meeting meeting;
  unsigned alive;
  Thread* current;
  Context scheduler;
};

inline Launch launch_under_way;
// 0: threads run in ascending order; 1: descending; more: shuffled by it.
inline int order = 0;

[[noreturn]] inline void fail(const char* what) {
  Launch& l = launch_under_way;
  fprintf(stderr, "cuda_host: %s, thread %u of block (%u, %u, %u)\n", what, l.current ? l.current->number : 0, l.block_index.x,
          l.block_index.y, l.block_index.z);
  abort();
}

inline void meet(Meeting& meeting, unsigned expected) {
  Launch& l = launch_under_way;
  if (++meeting.arrived == expected) {
    meeting.arrived = 0;
    ++meeting.generation;
    return;
  }
  l.current->waits_at = &meeting;
  l.current->since = meeting.generation;
  l.current->context.switch_to(l.scheduler);
}

inline void run_thread() {
  Launch& l = launch_under_way;
  l.run(l.kernel);
  l.current->is_done = true;
  // A thread that has ended is not waited for any more.
  if (--l.alive > 0 && l.meeting.arrived == l.alive) {
    l.meeting.arrived = 0;
    ++l.meeting.generation;
  }
  l.current->context.switch_to(l.scheduler);
}

inline std::vector<unsigned> turns(unsigned count) {
  std::vector<unsigned> turn(count);
  for (unsigned i = 0; i < count; ++i) turn[i] = order == 1 ? count - 1 - i : i;
  uint32_t random = 0x9e3779b9u * (uint32_t)order;
  for (unsigned i = count; order > 1 && i > 1; --i) {
    random = random * 1664525u + 1013904223u;
    std::swap(turn[i - 1], turn[(random >> 8) % i]);
  }
  return turn;
}

inline void run_block() {
  static char* stacks = (char*)mmap(nullptr, THREADS_MAX * STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (stacks == MAP_FAILED) fail("no memory for stacks");
  Launch& l = launch_under_way;
  unsigned count = l.block.x * l.block.y * l.block.z;
  if (count > THREADS_MAX) fail("more than 1024 threads");
  l.threads.resize(count);
  l.warps.assign((count + WARP - 1) / WARP, Warp());
  l.meeting = Meeting();
  l.alive = count;
  if (__start_cuda_shared) memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);
  for (unsigned i = 0; i < count; ++i) {
    Thread& thread = l.threads[i];
    thread.index = {i % l.block.x, i / l.block.x % l.block.y, i / (l.block.x * l.block.y)};
    thread.number = i, thread.is_done = false, thread.waits_at = nullptr;
    thread.context.start_at(stacks + i * STACK_BYTES, run_thread);
  }
  std::vector<unsigned> turn = turns(count);
  while (l.alive > 0) {
    bool has_moved = false;
    for (unsigned i : turn) {
      Thread& thread = l.threads[i];
      if (thread.is_done || (thread.waits_at && thread.waits_at->generation == thread.since)) continue;
      thread.waits_at = nullptr, l.current = &thread, has_moved = true;
      l.scheduler.switch_to(thread.context);
    }
    if (!has_moved) fail("all threads wait: a barrier or a shuffle that not all of them reach");
  }
  l.current = nullptr;
}

// A kernel and its arguments, as cuLaunchKernel takes them: a pointer to each.
template <class... A> struct Call {
  void (*kernel)(A...);
  void** args;
  template <size_t... I> void call(std::index_sequence<I...>) { kernel(*(std::remove_reference_t<A>*)args[I]...); }
  static void run(void* self) { ((Call*)self)->call(std::index_sequence_for<A...>()); }
};

template <class... A> void launch(void (*kernel)(A...), Dim grid, Dim block, void** args) {
  Launch& l = launch_under_way;
  Call<A...> call{kernel, args};
  l.run = Call<A...>::run, l.kernel = &call, l.grid = grid, l.block = block;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) l.block_index = {x, y, z}, run_block();
}

inline Warp& warp_of(unsigned mask) {
  Thread& thread = *launch_under_way.current;
  if (!(mask >> (thread.number % WARP) & 1)) fail("a shuffle by a lane outside its mask");
  return launch_under_way.warps[thread.number / WARP];
}

template <class V> V exchange(unsigned mask, V value, unsigned source) {
  static_assert(sizeof(V) <= 8, "a register or two");
  Warp& warp = warp_of(mask);
  unsigned lane = launch_under_way.current->number % WARP;
  uint64_t* slots = warp.slots[warp.meeting.generation % 2];
  memcpy(&slots[lane], &value, sizeof value);
  meet(warp.meeting, __builtin_popcount(mask));
  V got;
  memcpy(&got, &slots[source % WARP], sizeof got);
  return got;
}

// Kernels by name.

using Launcher = void (*)(const Dim* grid, const Dim* block, void** args);
struct Named { const char* name; size_t num_args; Launcher launch; Named* next; };
inline Named* kernels = nullptr;
template <class... A> constexpr size_t num_args(void (*)(A...)) { return sizeof...(A); }
struct Registration {
  Named named;
  Registration(const char* name, size_t num_args, Launcher launch) : named{name, num_args, launch, kernels} { kernels = &named; }
};

} // namespace cuda_host

#define HOST_KERNEL(kernel)                                                                              \
  static cuda_host::Registration registration_of_##kernel(                                               \
      #kernel, cuda_host::num_args(kernel),                                                              \
      [](const cuda_host::Dim* grid, const cuda_host::Dim* block, void** args) { cuda_host::launch(kernel, *grid, *block, args); });

#define threadIdx (cuda_host::launch_under_way.current->index)
#define blockIdx (cuda_host::launch_under_way.block_index)
#define blockDim (cuda_host::launch_under_way.block)
#define gridDim (cuda_host::launch_under_way.grid)

inline void __syncthreads() { cuda_host::meet(cuda_host::launch_under_way.meeting, cuda_host::launch_under_way.alive); }
template <class V> V __shfl_xor_sync(unsigned mask, V value, int lanes) {
  return cuda_host::exchange(mask, value, (cuda_host::launch_under_way.current->number % cuda_host::WARP) ^ lanes);
}
inline float __uint_as_float(unsigned bits) { float f; memcpy(&f, &bits, 4); return f; }
inline unsigned __float_as_uint(float f) { unsigned bits; memcpy(&bits, &f, 4); return bits; }
