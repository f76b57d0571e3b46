// Streams, events and memory of a GPU, by c10's registries of devices.
#include "shim.hpp"

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <memory>

namespace {

constexpr auto CUDA = c10::DeviceType::CUDA;

c10::Device gpu(int ordinal) { return {CUDA, static_cast<c10::DeviceIndex>(ordinal)}; }

c10::impl::VirtualGuardImpl guard() { return c10::impl::VirtualGuardImpl(CUDA); }

} // namespace

extern "C" {

// Whether libtorch has an implementation of an operation for GPUs now.
char *dslaunch_has_kernel(const char *name, const char *overload, int *has) {
    OR_TEXT({
        auto operation = c10::Dispatcher::singleton().findSchema({name, overload});
        *has = operation && operation->hasKernelForDispatchKey(c10::DispatchKey::CUDA);
    })
}

// From now on this thread computes on a stream of its own on this GPU. handle: the stream as the driver knows it.
char *dslaunch_use_own_stream(int ordinal, void **handle) {
    OR_TEXT({
        guard().setDevice(gpu(ordinal));
        auto stream = guard().getNewStream(gpu(ordinal), 0);
        guard().exchangeStream(stream);
        *handle = guard().getStreamNativeHandle(stream);
    })
}

// Sums of products in bf16 are made in fp32 to their end: parts of one are not rounded before they are added.
char *dslaunch_sum_products_in_fp32() { OR_TEXT(at::globalContext().setAllowBF16ReductionCuBLAS(false, true)) }

// A copy of a tensor of the host's on a GPU, by way of pinned memory: in the order of this thread's stream.
char *dslaunch_upload(at::Tensor **out, const at::Tensor *values, int ordinal) {
    OR_TEXT(give(out, {values->pin_memory().to(gpu(ordinal), /*non_blocking=*/true)}))
}

// A moment of this thread's stream to measure by: after all that was started on it.
char *dslaunch_event_record(int ordinal, c10::Event **event) {
    OR_TEXT({
        auto recorded = std::make_unique<c10::Event>(CUDA, c10::EventFlag::BACKEND_DEFAULT);
        recorded->record(guard().getStream(gpu(ordinal)));
        *event = recorded.release();
    })
}

// Milliseconds between two timed ones. Waits until the later one has come.
char *dslaunch_event_elapsed(const c10::Event *earlier, const c10::Event *later, double *milliseconds) {
    OR_TEXT({
        later->synchronize();
        *milliseconds = earlier->elapsedTime(*later);
    })
}

void dslaunch_event_free(c10::Event *event) { delete event; }

// What libtorch's allocator holds on a GPU for tensors, and has held at most: in bytes.
char *dslaunch_allocated_bytes(int ordinal, int64_t *now, int64_t *peak) {
    OR_TEXT({
        auto stats = at::getDeviceAllocator(CUDA)->getDeviceStats(static_cast<c10::DeviceIndex>(ordinal));
        *now = stats.reserved_bytes[0].current;
        *peak = stats.reserved_bytes[0].peak;
    })
}
}
