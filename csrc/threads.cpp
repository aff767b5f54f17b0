#include "threads.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#ifdef __unix__
#include <dlfcn.h>
#endif

namespace regkernels {
namespace {

bool one_thread = false;

}  // namespace

int num_threads() {
#ifdef _OPENMP
    return one_thread ? 1 : omp_get_max_threads();
#else
    return 1;
#endif
}

bool end_waiting_threads() {
#if defined(_OPENMP) && defined(__unix__)
    // Of OpenMP 5.0, and looked up because the runtime is torch's, which may be older than the one we were built with.
    using Pause = int (*)(int);
    static const auto pause = reinterpret_cast<Pause>(dlsym(RTLD_DEFAULT, "omp_pause_resource_all"));
    constexpr int kSoft = 1;  // keeps what was set, as the number of threads
    return pause && pause(kSoft) == 0;
#else
    return true;
#endif
}

void use_one_thread() { one_thread = true; }

}  // namespace regkernels
