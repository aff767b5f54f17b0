#include "parallel.h"

#include <algorithm>
#include <vector>

#include "tasks.h"

namespace regkernels {
namespace {

void add(Sums& total, const Sums& partial) {
#define REGKERNELS_ADD(NAME) total.NAME += partial.NAME;
    REGKERNELS_SUMS(REGKERNELS_ADD)
}

// Groups that several tasks share, as far as one allocation of numbers for them goes.
struct Wave {
    std::vector<int64_t> items;  // of each work its segment
    std::vector<GroupWork> works;
    size_t numbers = 0;
};

struct SharedTask {
    int64_t part;  // of a wave
    Tile tile;
    int64_t work;
};

constexpr size_t kNumbersOfWave = 1 << 21;
constexpr int64_t kNumbersPerGroup = 4;  // beside the sums of each piece
constexpr int64_t kGroupsPerTask = 1024;

void push_tiles(std::vector<SharedTask>& tasks, int64_t part, const GroupWork& work, const GroupLayout& layout) {
    const int64_t length = std::min(layout.inner, kPieceOfRun), strip = layout.strip();
    for (int64_t block = 0; block < layout.blocks; ++block) {
        const int64_t row_begin = block * layout.rows, row_end = std::min(row_begin + layout.rows, layout.outer);
        for (int64_t begin = work.begin; begin < work.end; begin += strip) {
            const int64_t end = std::min(begin + strip, work.end);
            for (int64_t piece = 0; piece < layout.pieces; ++piece) {
                const int64_t run_begin = piece * length, run_end = std::min(run_begin + length, layout.inner);
                const Tile tile = {row_begin, row_end, begin, end, run_begin, run_end, block * layout.pieces + piece};
                tasks.push_back({part, tile, (row_end - row_begin) * (end - begin) * (run_end - run_begin)});
            }
        }
    }
}

int64_t tiles_of(const GroupWork& work, const GroupLayout& layout) {
    return layout.blocks * layout.pieces * ceil_divide(work.end - work.begin, layout.strip());
}

// Groups that are too large for one task: each pass over them is a parallel region of its own. Everything that they
// take is allocated when this is made: once something has been written, nothing may fail.
class LargeGroups {
  public:
    LargeGroups(const Segment* segments, const std::vector<int64_t>& items, bool with_sums)
        : segments_(segments), with_sums_(with_sums) {
        if (items.empty()) return;
        waves_.emplace_back();
        for (const int64_t item : items) {
            const GroupLayout layout(segments[item]);
            const int64_t of_group = layout.blocks * layout.pieces * kSumsOfGroup + kNumbersPerGroup;
            const int64_t step = std::max<int64_t>(int64_t{kNumbersOfWave} / of_group, 1);
            for (int64_t begin = 0; begin < layout.groups; begin += step) {
                const int64_t end = std::min(begin + step, layout.groups);
                const auto numbers = static_cast<size_t>((end - begin) * of_group);
                if (waves_.back().numbers > 0 && waves_.back().numbers + numbers > kNumbersOfWave)
                    waves_.emplace_back();
                waves_.back().items.push_back(item);
                waves_.back().works.push_back({begin, end, nullptr, nullptr, nullptr, nullptr, nullptr});
                waves_.back().numbers += numbers;
            }
        }
        size_t numbers = 0;
        int64_t tiles = 0, ranges = 0;
        for (const Wave& wave : waves_) {
            int64_t own_tiles = 0, own_ranges = 0;
            for (size_t part = 0; part < wave.works.size(); ++part) {
                const GroupWork& work = wave.works[part];
                own_tiles += tiles_of(work, GroupLayout(segments[wave.items[part]]));
                own_ranges += ceil_divide(work.end - work.begin, kGroupsPerTask);
            }
            numbers = std::max(numbers, wave.numbers);
            tiles = std::max(tiles, own_tiles);
            ranges = std::max(ranges, own_ranges);
        }
        numbers_.resize(numbers);
        tiles_.reserve(static_cast<size_t>(tiles));
        ranges_.reserve(static_cast<size_t>(ranges));
        if (with_sums) partials_.resize(static_cast<size_t>(std::max(tiles, ranges)));
    }

    void update(const Kernels& kernels, const Hyper* rows, Sums* totals) {
        for (Wave& wave : waves_) {
            lay_out(wave);
            for (const GroupStage stage : {kObserve, kShare, kPropose, kShrinkGroups, kWrite, kCount}) {
                if (stage == kCount && !with_sums_) break;
                const bool by_tiles = stage == kObserve || stage == kPropose || stage == kWrite;
                const std::vector<SharedTask>& tasks = by_tiles ? tiles_ : ranges_;
                std::fill(partials_.begin(), partials_.end(), Sums{});
                for_chunks(tasks, [&](int64_t i, const SharedTask& task) {
                    const Segment& segment = segments_[wave.items[task.part]];
                    kernels.of[Kind(segment.kind).dtype].update_groups(stage, segment, task.tile, rows[segment.row],
                                                                       &wave.works[task.part],
                                                                       with_sums_ ? &partials_[i] : nullptr);
                });
                for (size_t i = 0; with_sums_ && i < tasks.size(); ++i)
                    add(totals[segments_[wave.items[tasks[i].part]].total], partials_[i]);
            }
        }
    }

  private:
    // Gives the groups of a wave their numbers, and cuts them into tasks.
    void lay_out(Wave& wave) {
        std::fill(numbers_.begin(), numbers_.end(), 0.0);
        tiles_.clear();
        ranges_.clear();
        double* next = numbers_.data();
        for (size_t part = 0; part < wave.works.size(); ++part) {
            GroupWork& work = wave.works[part];
            const GroupLayout layout(segments_[wave.items[part]]);
            const int64_t groups = work.end - work.begin, pieces = layout.blocks * layout.pieces;
            for (double** list : {&work.shared, &work.kept, &work.factor, &work.divisor}) {
                *list = next;
                next += groups;
            }
            work.partial = next;
            next += groups * pieces * kSumsOfGroup;
            push_tiles(tiles_, static_cast<int64_t>(part), work, layout);
            for (int64_t begin = work.begin; begin < work.end; begin += kGroupsPerTask) {
                const int64_t end = std::min(begin + kGroupsPerTask, work.end);
                ranges_.push_back({static_cast<int64_t>(part), {0, 0, begin, end, 0, 0, 0}, (end - begin) * pieces});
            }
        }
    }

    const Segment* segments_;
    bool with_sums_;
    std::vector<Wave> waves_;
    std::vector<double> numbers_;
    std::vector<SharedTask> tiles_, ranges_;
    std::vector<Sums> partials_;
};

}  // namespace

void update(const Kernels& kernels, const Segment* segments, int64_t count, const Hyper* rows, Sums* totals) {
    std::vector<Chunk> chunks;
    chunks.reserve(static_cast<size_t>(count));
    std::vector<int64_t> shared;  // segments with groups that are too large for one task
    for (int64_t item = 0; item < count; ++item) {
        const Segment& segment = segments[item];
        if (Kind(segment.kind).penalty != kGroup) {
            for (int64_t begin = 0; begin < segment.numel; begin += kChunk)
                push_chunk(chunks, item, begin, std::min(begin + kChunk, segment.numel));
        } else if (segment.numel > 0) {
            const GroupLayout layout(segment);
            if (!layout.is_local()) {
                shared.push_back(item);
                continue;
            }
            const int64_t step = layout.outer > kBlocksOfRows ? layout.groups : ceil_divide(kChunk, layout.size());
            for (int64_t begin = 0; begin < layout.groups; begin += step) {
                const int64_t end = std::min(begin + step, layout.groups);
                chunks.push_back({item, begin, end, (end - begin) * layout.size()});
            }
        }
    }
    // Nothing is allocated from the first write on: a step that fails must not have updated a part of the weights.
    std::vector<Sums> partials(totals ? chunks.size() : 0);
    LargeGroups large(segments, shared, totals != nullptr);
    for_chunks(chunks, [&](int64_t i, const Chunk& chunk) {
        const Segment& segment = segments[chunk.item];
        const Kind kind(segment.kind);
        if (kind.penalty == kGroup) {
            const Tile tile = {0, 0, chunk.begin, chunk.end, 0, 0, 0};
            kernels.of[kind.dtype].update_groups(kWhole, segment, tile, rows[segment.row], nullptr,
                                                 totals ? &partials[i] : nullptr);
            return;
        }
        kernels.of[kind.dtype].update(segment, kind, chunk.begin, chunk.end, rows[segment.row],
                                      totals ? &partials[i] : nullptr);
    });
    for (size_t i = 0; i < partials.size(); ++i) {
        add(totals[segments[chunks[i].item].total], partials[i]);
    }
    large.update(kernels, rows, totals);
}

Sums reduce(const Kernels& kernels, const Run* runs, int64_t count) {
    const std::vector<Chunk> chunks = cut(runs, count);
    std::vector<Sums> partials(chunks.size());
    for_chunks(chunks, [&](int64_t i, const Chunk& chunk) {
        const Run& run = runs[chunk.item];
        kernels.of[run.dtype].reduce(at(run.weight, chunk.begin, run.dtype), chunk.end - chunk.begin, &partials[i]);
    });
    Sums total = {};
    for (const Sums& partial : partials) add(total, partial);
    return total;
}

void penalty_gradient(const Kernels& kernels, const Run* runs, int64_t count, double absolute, double square) {
    for (int64_t i = 0; i < count; ++i) prefer_huge_pages(runs[i].out, runs[i].numel * size_of(runs[i].dtype));
    for_chunks(cut(runs, count), [&](int64_t, const Chunk& chunk) {
        const Run& run = runs[chunk.item];
        kernels.of[run.dtype].penalty_gradient(at(run.weight, chunk.begin, run.dtype),
                                               at(run.out, chunk.begin, run.dtype), chunk.end - chunk.begin, absolute,
                                               square);
    });
}

void soft_threshold(const Kernels& kernels, const Run* runs, int64_t count, double threshold) {
    for_chunks(cut(runs, count), [&](int64_t, const Chunk& chunk) {
        const Run& run = runs[chunk.item];
        kernels.of[run.dtype].soft_threshold(at(run.weight, chunk.begin, run.dtype),
                                             at(run.out, chunk.begin, run.dtype), chunk.end - chunk.begin, threshold);
    });
}

void proximal(const Kernels& kernels, const Segment* segments, int64_t count, const Hyper* rows) {
    for_chunks(cut(segments, count), [&](int64_t, const Chunk& chunk) {
        const Segment& segment = segments[chunk.item];
        kernels.of[ProximalKind(segment.kind).dtype].proximal(segment, chunk.begin, chunk.end, rows[segment.row]);
    });
}

}  // namespace regkernels
