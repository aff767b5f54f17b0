// What the processor and the operating system offer.
#pragma once

namespace regkernels {

// Asked of the processor itself: what compilers offer for it (__builtin_cpu_supports) needs a part of their own
// libraries, and where that part is not linked it says that there is nothing.
bool processor_has_avx2();    // with FMA, F16C and BMI2
bool processor_has_avx512();  // F, BW, DQ and VL, beside what AVX2 comes with

}  // namespace regkernels
