// Answers, in a step whose states somebody else may have: are they still what the table of segments was built from?
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "dlpack_abi.h"

namespace regkernels {

// Whoever reads `optimizer.state` may exchange what is in it later, and whoever holds a tensor may exchange its memory
// (`t.data = ...`, `t.set_()`, `t.share_memory_()`, `swap_tensors`, a storage that is resized). In Python a look at all
// of it costs more than the step of small tensors.
class States {
  public:
    // state: the optimizer's dictionary, in whose order its keys are compared, without hashing them. entries: for each
    // parameter (its key, its own dictionary, names of tensors, tensors, of each whether it is a DTensor); none without
    // tensors.
    States(pybind11::capsule exchange_api, pybind11::object state, const pybind11::list& entries);

    // Whether each of these tensors stands where it stood, with the address, type, shape and strides that it had.
    bool hold() const;

  private:
    struct Seen {
        pybind11::object name, tensor;
        bool spread;
        DLTensor view;  // its shape and strides are in layouts_
        size_t layout;
    };
    struct Key {
        pybind11::object key, value;  // no value: none of ours
        size_t first, count;          // in seen_
    };

    bool look(const Seen& seen, DLTensor* out) const;
    bool is_same(const Seen& seen) const;

    pybind11::object state_;
    DLPackExchangeAPI* api_;
    std::vector<Key> keys_;
    std::vector<Seen> seen_;
    std::vector<int64_t> layouts_;
    bool comparable_ = true;
};

}  // namespace regkernels
