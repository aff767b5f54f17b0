#include "threads.h"

namespace regkernels {
namespace {

Runtime active;
bool one_thread = false;

struct Region {
    void (*body)(void*, int64_t, int64_t);
    void* data;
};

void enter(void* data) {
    const auto* region = static_cast<const Region*>(data);
    region->body(region->data, active.thread_num(), active.num_threads());
}

}  // namespace

void use_runtime(const Runtime& runtime) { active = runtime; }

int num_threads() { return one_thread || !active.parallel ? 1 : active.max_threads(); }

void run_region(void (*body)(void*, int64_t, int64_t), void* data) {
    if (num_threads() == 1) return body(data, 0, 1);
    Region region = {body, data};
    // 0: as many as it would take by itself. With a number, libgomp may rebuild its pool of threads in every region
    // that torch and we take turns to open.
    active.parallel(enter, &region, 0, 0);
}

bool end_waiting_threads() {
    if (!active.parallel) return true;
    constexpr int kSoft = 1;  // keeps what was set, as the number of threads
    return active.pause_resource_all && active.pause_resource_all(kSoft) == 0;
}

void use_one_thread() { one_thread = true; }

}  // namespace regkernels
