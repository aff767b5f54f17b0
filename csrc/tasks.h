// Work for threads: tensors cut into chunks, and one parallel region over them.
#pragma once

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

// Calls body(index of chunk, chunk) for all chunks. Each thread gets one contiguous range of about equal cost: memory
// is then streamed in order, and a process that runs again touches the same pages from the same core. Nothing is
// allocated: an exception cannot leave a region, and none may come once something has been written.
template <class Task, class Body>
void for_chunks(const std::vector<Task>& chunks, const Body& body) {
    const int64_t count = static_cast<int64_t>(chunks.size());
    int64_t work = 0;
    for (const Task& chunk : chunks) work += cost(chunk);
    if (work < kSerialWork || count <= 1 || num_threads() == 1) {
        for (int64_t i = 0; i < count; ++i) body(i, chunks[i]);
        return;
    }
    auto share = [&](int64_t thread, int64_t threads) {
        const int64_t begin = work / threads * thread;
        const int64_t end = thread + 1 == threads ? work : work / threads * (thread + 1);
        int64_t done = 0;
        for (int64_t i = 0; i < count && done < end; ++i) {
            if (done >= begin) body(i, chunks[i]);
            done += cost(chunks[i]);
        }
    };
    using Share = decltype(share);
    run_region([](void* data, int64_t thread, int64_t threads) { (*static_cast<Share*>(data))(thread, threads); },
               &share);
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
