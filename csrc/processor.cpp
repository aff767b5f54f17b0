#include "processor.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace regkernels {
namespace {

// Intel's Software Developer's Manual, volume 2 (CPUID) and volume 1, 13.2 (XGETBV, states that the system saves).
struct Features {
    bool avx2 = false;
    bool avx512 = false;

    Features() {
#if defined(__x86_64__)
        unsigned a, b, c, d, extended;
        if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return;
        const bool fused = (c & bit_FMA) && (c & bit_F16C);
        if (!__get_cpuid_count(7, 0, &a, &extended, &c, &d)) return;
        unsigned saved, high;
        __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
        constexpr unsigned kYmm = 0x06, kZmm = 0xe6;
        avx2 = (saved & kYmm) == kYmm && fused && (extended & bit_AVX2) && (extended & bit_BMI2);
        avx512 = (saved & kZmm) == kZmm && avx2 && (extended & bit_AVX512F) && (extended & bit_AVX512BW) &&
                 (extended & bit_AVX512DQ) && (extended & bit_AVX512VL);
#endif
    }
};

const Features& features() {
    static const Features found;
    return found;
}

}  // namespace

bool processor_has_avx2() { return features().avx2; }

bool processor_has_avx512() { return features().avx512; }

}  // namespace regkernels
