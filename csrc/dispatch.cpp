#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "processor.h"

namespace regkernels {
namespace {

std::vector<const Kernels*> available() {
    std::vector<const Kernels*> found = {&kernels_baseline()};
#ifdef REGKERNELS_HAVE_AVX2
    if (processor_has_avx2()) found.push_back(&kernels_avx2());
#endif
#ifdef REGKERNELS_HAVE_AVX512
    if (processor_has_avx512()) found.push_back(&kernels_avx512());
#endif
    return found;
}

const Kernels* find(const std::string& name, const std::string& source) {
    std::string known;
    for (const Kernels* kernels : available()) {
        if (name == kernels->name) return kernels;
        known += std::string(known.empty() ? "" : ", ") + kernels->name;
    }
    throw std::invalid_argument(source + ": instruction set '" + name +
                                "' is not available here; choose one of: " + known);
}

std::atomic<const Kernels*>& active() {
    static std::atomic<const Kernels*> chosen = [] {
        const char* name = std::getenv("REGKERNELS_ISA");
        return name && *name ? find(name, "REGKERNELS_ISA") : available().back();
    }();
    return chosen;
}

}  // namespace

std::vector<std::string> available_isas() {
    std::vector<std::string> names;
    for (const Kernels* kernels : available()) names.emplace_back(kernels->name);
    return names;
}

const Kernels& active_kernels() { return *active().load(); }

void set_isa(const std::string& name) { active().store(find(name, "set_isa")); }

}  // namespace regkernels
