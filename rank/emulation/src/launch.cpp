// What Rust calls: kernels by name. See lib.rs.
#include "cuda_host.h"

extern "C" const cuda_host::Named* emulation_kernels() { return cuda_host::kernels; }

extern "C" void emulation_launch(const cuda_host::Named* kernel, const cuda_host::Dim* grid, const cuda_host::Dim* block, void** args,
                                 int order) {
  cuda_host::order = order;
  kernel->launch(grid, block, args);
}
