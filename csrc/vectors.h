// How wide the registers of this instruction set are.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace regkernels {
namespace {

// Numbers of 64 bits in a register.
#if defined(__AVX512F__)
constexpr int kWidth = 8;
#elif defined(__AVX2__)
constexpr int kWidth = 4;
#else
constexpr int kWidth = 2;
#endif

}  // namespace
}  // namespace regkernels
