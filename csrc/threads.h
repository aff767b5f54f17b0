// Regions of threads, in the OpenMP runtime that torch has loaded, and what becomes of them when the process forks.
//
// The extension is not linked to a runtime: one that was baked in could be a second one beside torch's, with threads of
// its own, and a wheel would have to carry it. Python looks up these functions (regkernels/backends/openmp.py).
#pragma once

#include <cstdint>

namespace regkernels {

// GCC's entry for `#pragma omp parallel`, which LLVM's and Intel's runtimes have too, and functions of OpenMP.
struct Runtime {
    void (*parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
    int (*max_threads)() = nullptr;
    int (*num_threads)() = nullptr;
    int (*thread_num)() = nullptr;
    int (*pause_resource_all)(int kind) = nullptr;  // of OpenMP 5.0; may be missing
};

// Until this is called everything runs in the calling thread.
void use_runtime(const Runtime& runtime);

// Threads that the next region would use, as set by torch.set_num_threads.
int num_threads();

// Calls body(data, thread, threads) in each of `threads` threads; how many that are is up to the runtime.
void run_region(void (*body)(void* data, int64_t thread, int64_t threads), void* data);

// Ends the threads that wait for the next region of the calling thread; that starts new ones. A child has none of its
// parent's threads, but libgomp would wait for them there for ever. False where the runtime cannot end them.
bool end_waiting_threads();

// For a child whose parent could not end its threads: regions have one thread from now on.
void use_one_thread();

}  // namespace regkernels
