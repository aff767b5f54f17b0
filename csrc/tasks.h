// Work for threads: tensors cut into chunks, and one parallel region over them.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <vector>

#include "table.h"
#include "threads.h"

namespace regkernels {

struct Chunk {
    int64_t item;
    int64_t begin;
    int64_t end;
    int64_t work;  // elements
};

// What one chunk costs beyond its elements, in elements: without it a thread that drew a thousand tiny tensors would
// be counted as idle as one that drew none.
constexpr int64_t kChunkOverhead = 64;
// Below this much work a region costs more than it saves.
constexpr int64_t kSerialWork = 32768;

inline void push_chunk(std::vector<Chunk>& chunks, int64_t item, int64_t begin, int64_t end) {
    chunks.push_back({item, begin, end, end - begin});
}
template <class Item>
std::vector<Chunk> cut(const Item* items, int64_t count) {
    std::vector<Chunk> chunks;
    chunks.reserve(static_cast<size_t>(count));
    for (int64_t item = 0; item < count; ++item)
        for (int64_t begin = 0; begin < items[item].numel; begin += kChunk)
            push_chunk(chunks, item, begin, std::min(begin + kChunk, items[item].numel));
    return chunks;
}

template <class Task>
int64_t cost(const Task& task) {
    return task.work + kChunkOverhead;
}

// The first chunk of each thread. Allocated by whoever calls: an exception cannot leave a parallel region, and none may
// come once something has been written.
class Starts {
  public:
    Starts() : first_(static_cast<size_t>(num_threads()) + 1) {}

    template <class Task>
    void deal_out(const std::vector<Task>& chunks, int64_t work, int64_t threads) {
        const int64_t count = static_cast<int64_t>(chunks.size());
        int64_t done = 0, thread = 0;
        for (int64_t i = 0; i < count; ++i) {
            while (thread < threads && done >= work / threads * thread) first_[thread++] = i;
            done += cost(chunks[i]);
        }
        while (thread <= threads) first_[thread++] = count;
    }
    int64_t operator[](int64_t thread) const { return first_[thread]; }
    int64_t threads() const { return static_cast<int64_t>(first_.size()) - 1; }

  private:
    std::vector<int64_t> first_;
};

// Calls body(index of chunk, chunk) for all chunks. Each thread gets one contiguous range of about equal cost: memory
// is then streamed in order, and a process that runs again touches the same pages from the same core.
template <class Task, class Body>
void for_chunks(const std::vector<Task>& chunks, const Body& body, Starts& starts) {
    const int64_t count = static_cast<int64_t>(chunks.size());
    int64_t work = 0;
    for (const Task& chunk : chunks) work += cost(chunk);
#ifdef _OPENMP
    if (work >= kSerialWork && count > 1 && starts.threads() > 1) {
        // No num_threads clause: with one, libgomp may rebuild its pool of threads in every region that torch and we
        // take turns to open.
#pragma omp parallel
        {
#pragma omp single
            starts.deal_out(chunks, work, omp_get_num_threads());
            const int64_t thread = omp_get_thread_num();
            for (int64_t i = starts[thread]; i < starts[thread + 1]; ++i) body(i, chunks[i]);
        }
        return;
    }
#endif
    for (int64_t i = 0; i < count; ++i) body(i, chunks[i]);
}
template <class Task, class Body>
void for_chunks(const std::vector<Task>& chunks, const Body& body) {
    Starts starts;
    for_chunks(chunks, body, starts);
}

inline int64_t size_of(int64_t dtype) { return dtype == kFloat64 ? 8 : dtype == kFloat32 ? 4 : 2; }

inline int64_t compute_dtype(int64_t dtype) { return dtype == kFloat64 ? kFloat64 : kFloat32; }

inline void* at(int64_t address, int64_t offset, int64_t dtype) {
    return reinterpret_cast<char*>(address) + offset * size_of(dtype);
}

// Asks for huge pages behind an output that was just allocated. The kernel fills such memory page by page on first
// touch, and with pages of 4 KiB that takes longer than the arithmetic.
inline void prefer_huge_pages(int64_t address, int64_t bytes) {
#ifdef __linux__
    constexpr int64_t kHugePage = 2 << 20;
    const int64_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
    const int64_t length = (address + bytes - begin) / kHugePage * kHugePage;
    if (length > 0) madvise(reinterpret_cast<void*>(begin), static_cast<size_t>(length), MADV_HUGEPAGE);
#else
    (void)address, (void)bytes;
#endif
}

}  // namespace regkernels
