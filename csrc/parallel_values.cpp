// The values of the penalties beyond L1 and L2, and their gradients, in parallel.
#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"
#include "tasks.h"

namespace regkernels {
namespace {

// Of a tile of groups, in elements: neighbours in memory, as many as make whole cache lines, and few enough that the
// partial sums of a tall matrix's columns take much less memory than the matrix.
constexpr int64_t kTileWidth = 1024;

}  // namespace

double value(const Kernels& kernels, const Run* runs, int64_t count, int64_t formula, const Numbers& numbers) {
    const std::vector<Chunk> chunks = cut(runs, count);
    std::vector<double> partials(chunks.size());
    for_chunks(chunks, [&](int64_t i, const Chunk& chunk) {
        const Run& run = runs[chunk.item];
        kernels.of[run.dtype].value(at(run.weight, chunk.begin, run.dtype), chunk.end - chunk.begin, formula, numbers,
                                    &partials[i]);
    });
    double total = 0;
    for (const double partial : partials) total += partial;
    return total;
}

void slope(const Kernels& kernels, const Run* runs, int64_t count, int64_t formula, const Numbers& numbers) {
    for (int64_t i = 0; i < count; ++i) prefer_huge_pages(runs[i].out, runs[i].numel * size_of(runs[i].dtype));
    for_chunks(cut(runs, count), [&](int64_t, const Chunk& chunk) {
        const Run& run = runs[chunk.item];
        kernels.of[run.dtype].slope(at(run.weight, chunk.begin, run.dtype), at(run.out, chunk.begin, run.dtype),
                                    chunk.end - chunk.begin, formula, numbers);
    });
}

Weighted weighted_value(const Kernels& kernels, const WeightedRun* runs, int64_t count) {
    const std::vector<Chunk> chunks = cut(runs, count);
    std::vector<Weighted> partials(chunks.size());
    for_chunks(chunks, [&](int64_t i, const Chunk& chunk) {
        const WeightedRun& run = runs[chunk.item];
        kernels.of[run.dtype].weighted_value(at(run.weight, chunk.begin, run.dtype),
                                             at(run.factors, chunk.begin, compute_dtype(run.dtype)),
                                             chunk.end - chunk.begin, &partials[i]);
    });
    Weighted total = {};
    for (const Weighted& partial : partials) {
        total.sum += partial.sum;
        total.refused += partial.refused;
    }
    return total;
}

void weighted_slope(const Kernels& kernels, const WeightedRun* runs, int64_t count, double scale) {
    for (int64_t i = 0; i < count; ++i) prefer_huge_pages(runs[i].out, runs[i].numel * size_of(runs[i].dtype));
    for_chunks(cut(runs, count), [&](int64_t, const Chunk& chunk) {
        const WeightedRun& run = runs[chunk.item];
        kernels.of[run.dtype].weighted_slope(at(run.weight, chunk.begin, run.dtype),
                                             at(run.factors, chunk.begin, compute_dtype(run.dtype)),
                                             at(run.out, chunk.begin, run.dtype), chunk.end - chunk.begin, scale);
    });
}

// The norms are those of sums over tiles, which depend on nothing but the layouts.
std::vector<double> group_norms(const Kernels& kernels, const GroupRun* runs, int64_t count) {
    std::vector<Chunk> chunks;  // each a tile
    std::vector<ValueTile> tiles;
    std::vector<int64_t> first_sum, begin_of_run;
    int64_t sums = 0;
    for (int64_t item = 0; item < count; ++item) {
        begin_of_run.push_back(static_cast<int64_t>(tiles.size()));
        const GroupShape& layout = runs[item].layout;
        if (runs[item].numel == 0) continue;
        const int64_t across = std::max(kTileWidth, kChunk / layout.outer);
        const int64_t width = std::clamp<int64_t>(across / layout.inner, 1, layout.groups);
        const int64_t height = std::max<int64_t>(kChunk / (width * layout.inner), 1);
        for (int64_t g = 0; g < layout.groups; g += width)
            for (int64_t o = 0; o < layout.outer; o += height)
                for (int64_t i = 0; i < layout.inner; i += kChunk) {
                    const ValueTile tile = {o, std::min(o + height, layout.outer),
                                            g, std::min(g + width, layout.groups),
                                            i, std::min(i + kChunk, layout.inner)};
                    const int64_t numel = (tile.outer_end - o) * (tile.group_end - g) * (tile.inner_end - i);
                    push_chunk(chunks, item, 0, numel);
                    tiles.push_back(tile);
                    first_sum.push_back(sums);
                    sums += tile.group_end - g;
                }
    }
    begin_of_run.push_back(static_cast<int64_t>(tiles.size()));
    std::vector<double> partials(static_cast<size_t>(sums));
    for_chunks(chunks, [&](int64_t i, const Chunk& chunk) {
        const GroupRun& run = runs[chunk.item];
        kernels.of[run.dtype].group_squares(at(run.weight, 0, run.dtype), run.layout, tiles[i],
                                            &partials[first_sum[i]]);
    });
    std::vector<double> totals(static_cast<size_t>(count));
    for (int64_t item = 0; item < count; ++item) {
        auto* norms = reinterpret_cast<double*>(runs[item].numbers);
        std::fill(norms, norms + runs[item].layout.groups, 0.0);
        for (int64_t i = begin_of_run[item]; i < begin_of_run[item + 1]; ++i)
            for (int64_t g = tiles[i].group_begin; g < tiles[i].group_end; ++g)
                norms[g] += partials[first_sum[i] + g - tiles[i].group_begin];
        for (int64_t g = 0; g < runs[item].layout.groups; ++g) totals[item] += norms[g] = std::sqrt(norms[g]);
    }
    return totals;
}

void group_scale(const Kernels& kernels, const GroupRun* runs, int64_t count) {
    for (int64_t i = 0; i < count; ++i) prefer_huge_pages(runs[i].out, runs[i].numel * size_of(runs[i].dtype));
    for_chunks(cut(runs, count), [&](int64_t, const Chunk& chunk) {
        const GroupRun& run = runs[chunk.item];
        kernels.of[run.dtype].group_scale(at(run.weight, 0, run.dtype), at(run.out, 0, run.dtype), chunk.begin,
                                          chunk.end, run.layout, reinterpret_cast<const double*>(run.numbers));
    });
}

}  // namespace regkernels
