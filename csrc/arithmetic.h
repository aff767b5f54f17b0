// Functions of single numbers that compilers vectorise, with the same bits at every vector width: signs, roots,
// logarithms.
#pragma once

#include <cstdint>
#include <cstring>

namespace regkernels {
namespace {

template <class C>
inline C sign(C x) {
    return x > 0 ? C(1) : (x < 0 ? C(-1) : (x == 0 ? C(0) : x));
}

template <class C>
inline C magnitude(C x) {
    return x < 0 ? -x : x;
}

inline float square_root(float x) { return __builtin_sqrtf(x); }
inline double square_root(double x) { return __builtin_sqrt(x); }

template <class C>
struct Bits;
template <>
struct Bits<float> {
    using Integer = int32_t;
    static constexpr int kMantissa = 23, kBias = 127;
};
template <>
struct Bits<double> {
    using Integer = int64_t;
    static constexpr int kMantissa = 52, kBias = 1023;
};

// Of x >= 1, to about two units in the last place.
template <class C>
inline C logarithm(C x) {
    using Integer = typename Bits<C>::Integer;
    constexpr Integer kOne = Integer(Bits<C>::kBias) << Bits<C>::kMantissa;
    constexpr Integer kMask = (Integer(1) << Bits<C>::kMantissa) - 1;
    Integer pattern;
    std::memcpy(&pattern, &x, sizeof x);
    const C exponent = C(static_cast<int32_t>(pattern >> Bits<C>::kMantissa) - Bits<C>::kBias);
    pattern = (pattern & kMask) | kOne;
    C m;
    std::memcpy(&m, &pattern, sizeof x);
    const bool high = m > C(1.4142135623730951);
    const C e = high ? exponent + 1 : exponent;
    m = high ? m * C(0.5) : m;
    const C z = (m - 1) / (m + 1);
    const C q = z * z;
    C sum = C(1.0 / 21);
    sum = sum * q + C(1.0 / 19);
    sum = sum * q + C(1.0 / 17);
    sum = sum * q + C(1.0 / 15);
    sum = sum * q + C(1.0 / 13);
    sum = sum * q + C(1.0 / 11);
    sum = sum * q + C(1.0 / 9);
    sum = sum * q + C(1.0 / 7);
    sum = sum * q + C(1.0 / 5);
    sum = sum * q + C(1.0 / 3);
    sum = sum * q + 1;
    return e * C(0.6931471805599453) + (z + z) * sum;
}

inline uint64_t bits_of(double x) {
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline double from_bits(uint64_t bits) {
    double x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// log(1 + y) for y >= 0, to a few units in the last place. Not libm's: that is a call per element, or another one per
// instruction set. 1 + y = 2^k (1 + f) with 1 + f between the roots of 1/2 and of 2, and
// log(1 + f) = 2 artanh(f / (2 + f)).
inline double log_of_one_plus(double y) {
    constexpr uint64_t kRootOfHalf = 0x3fe6a09e667f3bcd;
    constexpr uint64_t kTwoTo52 = 0x4330000000000000;
    constexpr double kLog2 = 0.693147180559945309417232121458;
    const uint64_t bits = bits_of(1 + y);
    const uint64_t k = (bits - kRootOfHalf) >> 52;
    const double f = k == 0 ? y : from_bits(bits - (k << 52)) - 1;  // y itself: 1 + y has lost some of its bits
    const double s = f / (2 + f);
    const double z = s * s;
    double series = 1.0 / 23;
    series = series * z + 1.0 / 21;
    series = series * z + 1.0 / 19;
    series = series * z + 1.0 / 17;
    series = series * z + 1.0 / 15;
    series = series * z + 1.0 / 13;
    series = series * z + 1.0 / 11;
    series = series * z + 1.0 / 9;
    series = series * z + 1.0 / 7;
    series = series * z + 1.0 / 5;
    series = series * z + 1.0 / 3;
    series = series * z + 1.0;
    const double exponent = from_bits(kTwoTo52 | k) - 0x1p52;
    const double result = exponent * kLog2 + 2 * s * series;
    return y < __builtin_inf() ? result : y;
}

}  // namespace
}  // namespace regkernels
