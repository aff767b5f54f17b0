// How many threads a region has, and what becomes of them when the process forks.
#pragma once

namespace regkernels {

// Threads that the next region would use, as set by torch.set_num_threads.
int num_threads();

// Ends the threads that wait for the next region of the calling thread; that starts new ones. A child has none of its
// parent's threads, but libgomp would wait for them there for ever. False where the runtime cannot end them.
bool end_waiting_threads();

// For a child whose parent could not end its threads: regions have one thread from now on.
void use_one_thread();

}  // namespace regkernels
