// Runs every kernel on numbers that are the same everywhere and prints a hash of what it leaves in memory, a line per
// case. Two builds compute the same bits where they print the same lines. With an argument, that instruction set.
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

#include "dispatch.h"
#include "parallel.h"
#include "tasks.h"

using namespace regkernels;

namespace {

// How a number lies in memory.
struct Format {
    int bytes, mantissa, exponent;  // bits of these

    int bias() const { return (1 << (exponent - 1)) - 1; }
};
constexpr Format kFormatOf[kDtypes] = {{8, 52, 11}, {4, 23, 8}, {2, 10, 5}, {2, 7, 8}};
constexpr Format kBits16 = {2, 16, 0};  // no number: what a remainder keeps

uint64_t drawn = 0;

// splitmix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
uint64_t draw() {
    uint64_t z = drawn += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

enum Values { kAny, kNotNegative, kAnyAndSpecial, kNotNegativeAndSpecial };

// One number: mostly between 2^-12 and 2^3; now and then a zero, a subnormal, something large and, where they are asked
// for, infinity and NaN. Made of bits, since a conversion would be what is tried.
uint64_t pattern(const Format& format, Values values) {
    const uint64_t random = draw(), mantissa = draw() >> (64 - format.mantissa);
    if (format.exponent == 0) return mantissa;
    const uint64_t kind = random % 64, largest = (uint64_t{1} << format.exponent) - 1;
    const bool special = values >= kAnyAndSpecial;
    const uint64_t negative = values % 2 == 0 ? random >> 63 : 0;
    uint64_t exponent = static_cast<uint64_t>(format.bias()) - 12 + (random >> 8) % 16, fraction = mantissa;
    if (kind == 0) exponent = fraction = 0;
    if (kind == 1) exponent = 0;
    if (kind == 2) exponent = static_cast<uint64_t>(format.bias()) + 12;
    if (special && kind == 3) exponent = largest, fraction = 0;
    if (special && kind == 4) exponent = largest, fraction = uint64_t{1} << (format.mantissa - 1);
    if (special && kind == 5) exponent = largest - 1;
    return negative << (format.mantissa + format.exponent) | exponent << format.mantissa | fraction;
}

class Memory {
  public:
    Memory(const Format& format, int64_t count, Values values)
        : format_(format), bytes_(static_cast<size_t>(count * format.bytes)) {
        for (size_t at = 0; at < bytes_.size(); at += static_cast<size_t>(format.bytes)) {
            const uint64_t bits = pattern(format, values);
            memcpy(&bytes_[at], &bits, static_cast<size_t>(format.bytes));  // little-endian, as all of ours are
        }
    }
    int64_t address() { return reinterpret_cast<int64_t>(bytes_.data()); }
    char* data() { return bytes_.data(); }

    template <class Add>
    void each(const Add& add) const {
        for (size_t at = 0; at < bytes_.size(); at += static_cast<size_t>(format_.bytes)) {
            uint64_t bits = 0;
            memcpy(&bits, &bytes_[at], static_cast<size_t>(format_.bytes));
            add(format_, bits);
        }
    }

  private:
    Format format_;
    std::vector<char> bytes_;
};

// FNV-1a of 64 bits. All NaN count as one: nobody promises which of them an operation gives.
class Hash {
  public:
    void add(const Format& format, uint64_t bits) {
        const uint64_t infinity = ((uint64_t{1} << format.exponent) - 1) << format.mantissa;
        const uint64_t magnitude = bits & ((uint64_t{1} << (format.exponent + format.mantissa)) - 1);
        if (format.exponent && magnitude > infinity) bits = infinity | 1;
        for (int byte = 0; byte < 8; ++byte) hash_ = (hash_ ^ ((bits >> (8 * byte)) & 255)) * 0x100000001b3u;
    }
    void add(double number) {
        uint64_t bits;
        memcpy(&bits, &number, sizeof bits);
        add(kFormatOf[kFloat64], bits);
    }
    void add(const Memory& memory) {
        memory.each([&](const Format& format, uint64_t bits) { add(format, bits); });
    }
    void print(const std::string& name) const {
        printf("%s %016llx\n", name.c_str(), static_cast<unsigned long long>(hash_));
    }

  private:
    uint64_t hash_ = 0xcbf29ce484222325u;
};

// Names a case, and begins its numbers, which depend on nothing else.
std::string named(const char* what, std::initializer_list<int64_t> numbers) {
    std::string name = what;
    for (const int64_t number : numbers) name += ' ' + std::to_string(number);
    drawn = 0;
    for (const char letter : name) drawn = drawn * 1099511628211u + static_cast<unsigned char>(letter);
    return name;
}

// Rows of hyper-parameters: one that does little, one that does most, one with bounds and other penalties.
constexpr int kRows = 3;
Hyper row(int number) {
    const double infinity = std::numeric_limits<double>::infinity();
    Hyper h = {};
    h.scale = h.decay = h.shrink_divisor = h.gain = 1;
    h.lr = 0.01;
    h.lower = -infinity, h.upper = h.max_norm = h.largest_shrink = infinity;
    h.momentum = h.one_minus_dampening = h.beta1 = 0.9, h.one_minus_beta1 = 0.1;
    h.beta2 = 0.999, h.one_minus_beta2 = 0.001, h.eps = 1e-8;
    h.inverse_bias1 = 1 / (1 - 0.81), h.inverse_sqrt_bias2 = 22.366272042129;
    h.strength = 0.7, h.shape = 3.7, h.group_strength = 0.3;
    h.seed = 12345, h.step = 7;
    if (number == 1) {
        h.scale = -0.37, h.coupled_decay = 0.013, h.subgradient = 0.0021, h.decay = 0.9993, h.nesterov = 1;
        h.threshold = 0.0031, h.threshold_per_step = 0.17, h.shrink_divisor = 1.0021, h.shrink_per_step = 0.31;
        h.largest_shrink = 0.25, h.group_by_size = 1, h.max_norm = 2.5, h.seed = 4e9, h.step = 3e9;
    }
    if (number == 2) {
        h.lower = 0, h.upper = 0.8, h.cautious = 1, h.decay = 0.99, h.unit_norm = 1, h.shape = 1.3, h.strength = 0.2;
        h.threshold = 0.02;
    }
    return h;
}

constexpr int64_t kRules = 0 REGKERNELS_RULES(REGKERNELS_ONE);
constexpr int64_t kMetrics = 0 REGKERNELS_METRICS(REGKERNELS_ONE);
constexpr int64_t kFormulas = 0 REGKERNELS_FORMULAS(REGKERNELS_ONE);

const Format& compute(int64_t dtype) { return kFormatOf[compute_dtype(dtype)]; }

struct Shape {
    int64_t outer, groups, inner, place, gap;

    int64_t numel() const { return outer * groups * inner; }
};

void try_update(int64_t number, const Shape& shape, int hyper, bool special) {
    const Kind kind(number);
    const std::string name =
        named("update", {number, hyper, special, shape.outer, shape.groups, shape.inner, shape.place, shape.gap});
    const int64_t numel = shape.numel();
    const Format &of_weight = kFormatOf[kind.dtype],
                 &of_state = kind.narrow ? kFormatOf[kBFloat16] : compute(kind.dtype);
    const Values any = special ? kAnyAndSpecial : kAny, not_negative = special ? kNotNegativeAndSpecial : kNotNegative;
    Memory weight(of_weight, numel, any), gradient(of_weight, numel, any);
    std::vector<Memory> states;
    for (int k = 0; k < kMaxStates; ++k) states.emplace_back(of_state, numel, not_negative);
    Memory kept(kind.rounding == kRemainder ? kBits16 : kFormatOf[kFloat32], numel, any);
    Memory l1_weight(compute(kind.dtype), numel, kNotNegative);
    Segment segment = {};
    segment.weight = weight.address(), segment.gradient = gradient.address(), segment.kept = kept.address();
    for (int k = 0; k < kMaxStates; ++k) segment.state[k] = states[static_cast<size_t>(k)].address();
    segment.l1_weight = l1_weight.address(), segment.numel = numel, segment.stream = 3, segment.place = shape.place;
    segment.gap = shape.gap, segment.groups = shape.groups, segment.inner = shape.inner, segment.kind = number;
    const Hyper h = row(hyper);
    Sums sums = {};
    update(active_kernels(), &segment, 1, &h, &sums);
    Hash hash;
    hash.add(weight);
    for (const Memory& state : states) hash.add(state);
    hash.add(kept);
#define REGKERNELS_HASH(NAME) hash.add(sums.NAME);
    REGKERNELS_SUMS(REGKERNELS_HASH)
    hash.print(name);
}

bool exists(const Kind& kind) {
    const bool half = kind.dtype == kFloat16 || kind.dtype == kBFloat16;
    if (kind.narrow && kind.dtype == kFloat64) return false;
    return kind.rounding == kNearest || (half && (kind.rounding != kRemainder || kind.dtype == kBFloat16));
}

void try_updates(bool special) {
    // The last ones begin shortly before a place of 2^35, from which the counter of random numbers has a second word.
    constexpr int64_t kSecondWord = int64_t{8} << 32;
    const Shape flat = {1, 1, 1111, 13, 0}, long_one = {1, 1, 40001, kSecondWord - 20000, 0};
    const Shape grouped[] = {
        {1, 37, 9, 0, 0}, {1, 5, 300, 5, 0}, {40, 11, 3, 0, 1000}, {17, 23, 1, kSecondWord - 200, 0}};
    const Shape large[] = {{1, 2, 70001, 0, 0}, {300, 500, 1, 0, 0}};
    for (int64_t number = 0; number < kRules * kPenalties * kFormats; ++number) {
        const Kind kind(number);
        if (!exists(kind)) continue;
        for (int hyper = 0; hyper < kRows; ++hyper) {
            if (kind.penalty == kGroup)
                for (const Shape& shape : grouped) try_update(number, shape, hyper, special);
            else
                try_update(number, flat, hyper, special);
        }
        if (kind.penalty == kPlain) try_update(number, long_one, 1, special);
        if (kind.penalty == kGroup && kind.rounding == kNearest && !kind.narrow)
            for (const Shape& shape : large) try_update(number, shape, 1, special);
    }
}

void try_runs(int64_t dtype, int64_t numel, bool special) {
    const Kernels& kernels = active_kernels();
    const std::string suffix = named("", {dtype, numel, special});
    const Values any = special ? kAnyAndSpecial : kAny;
    Memory weight(kFormatOf[dtype], numel, any), out(kFormatOf[dtype], numel, kAny);
    Memory factors(compute(dtype), numel, kNotNegative);
    const Run run = {weight.address(), out.address(), numel, dtype};
    const WeightedRun weighted = {weight.address(), factors.address(), out.address(), numel, dtype};
    const auto print = [&](const std::string& name, std::initializer_list<double> numbers) {
        Hash hash;
        for (const double number : numbers) hash.add(number);
        hash.add(out);
        hash.print(name + suffix);
    };
    const Sums sums = reduce(kernels, &run, 1);
    print("reduce", {sums.absolute, sums.square});
    penalty_gradient(kernels, &run, 1, 0.3, 0.7);
    print("penalty_gradient", {});
    soft_threshold(kernels, &run, 1, 0.21);
    print("soft_threshold", {});
    for (int64_t formula = 0; formula < kFormulas; ++formula) {
        const Numbers numbers = {0.3, 0.7, 1.9, 0.11};
        const double total = value(kernels, &run, 1, formula, numbers);
        slope(kernels, &run, 1, formula, numbers);
        print("formula " + std::to_string(formula), {total});
    }
    const Weighted total = weighted_value(kernels, &weighted, 1);
    weighted_slope(kernels, &weighted, 1, 0.37);
    print("weighted", {total.sum, total.refused});
}

void try_proximal(int64_t number, int64_t numel, int hyper, bool special) {
    const ProximalKind kind(number);
    const std::string name = named("proximal", {number, numel, hyper, special});
    const Format& of_operand = kind.narrow ? kFormatOf[kind.dtype] : compute(kind.dtype);
    Memory weight(kFormatOf[kind.dtype], numel, special ? kAnyAndSpecial : kAny);
    Memory first(of_operand, numel, kNotNegative), second(of_operand, numel, kNotNegative);
    Segment segment = {};
    segment.weight = weight.address(), segment.state[0] = first.address(), segment.state[1] = second.address();
    segment.numel = segment.inner = numel, segment.groups = 1, segment.kind = number;
    const Hyper h = row(hyper);
    proximal(active_kernels(), &segment, 1, &h);
    Hash hash;
    hash.add(weight);
    hash.print(name);
}

void try_groups(int64_t dtype, const GroupShape& shape, bool special) {
    const std::string name = named("groups", {dtype, shape.outer, shape.groups, shape.inner, special});
    const int64_t numel = shape.outer * shape.groups * shape.inner;
    Memory weight(kFormatOf[dtype], numel, special ? kAnyAndSpecial : kAny), out(kFormatOf[dtype], numel, kAny);
    Memory norms(kFormatOf[kFloat64], shape.groups, kAny);
    const GroupRun run = {weight.address(), out.address(), norms.address(), numel, dtype, shape};
    Hash hash;
    for (const double total : group_norms(active_kernels(), &run, 1)) hash.add(total);
    hash.add(norms);
    group_scale(active_kernels(), &run, 1);
    hash.add(out);
    hash.print(name);
}

}  // namespace

int main(int count, char** arguments) {
    if (count > 1 && !strcmp(arguments[1], "--list")) {
        for (const std::string& name : available_isas()) printf("%s\n", name.c_str());
        return 0;
    }
    if (count > 1) set_isa(arguments[1]);
    for (const bool special : {false, true}) {
        try_updates(special);
        for (int64_t dtype = 0; dtype < kDtypes; ++dtype) {
            for (const int64_t numel : {1, 15, 1000, 50001}) try_runs(dtype, numel, special);
            for (const GroupShape shape : {GroupShape{1, 30, 100}, {3, 17, 9}, {40, 9, 1}, {700, 50, 1}})
                try_groups(dtype, shape, special);
        }
        for (int64_t number = 0; number < kMetrics * kDtypes * 2; ++number)
            for (const int64_t numel : {15, 1000})
                for (int hyper = 0; hyper < kRows; ++hyper)
                    if (ProximalKind(number).dtype >= kFloat16 || !ProximalKind(number).narrow)
                        try_proximal(number, numel, hyper, special);
    }
}
