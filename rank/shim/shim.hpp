// What the files here share. They give Rust what tch lacks of libtorch on a GPU, with symbols of libtorch_cpu and c10 alone: a program
// with them in it starts on machines without CUDA. What they call is there once libtorch_cuda has been loaded
// (rank/src/device/cuda/torch.rs, which declares every function again).
//
// Every function returns null, or what went wrong as text that the caller frees.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstring>
#include <exception>
#include <initializer_list>

// Runs statements, and returns from the function.
#define OR_TEXT(...)                        \
    try {                                   \
        __VA_ARGS__;                        \
        return nullptr;                     \
    } catch (const std::exception &error) { \
        return strdup(error.what());        \
    } catch (...) {                         \
        return strdup("an unknown C++ exception"); \
    }

// Gives tensors to Rust, which owns them from then on, as torch-sys does.
inline void give(at::Tensor **to, std::initializer_list<at::Tensor> tensors) {
    for (const auto &tensor : tensors) *to++ = new at::Tensor(tensor);
}
