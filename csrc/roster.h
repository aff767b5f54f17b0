// Answers, once per step: are the parameters and gradients still what the table of segments was built from?
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "dlpack_abi.h"

namespace regkernels {

// A step must notice every change of memory behind its back: gradients that backward allocated anew or set to None,
// `p.data = ...`, entries of param_groups that were exchanged. In Python these checks cost several times what the
// update of a small tensor costs, so they are made here, through torch's published DLPack table and without linking
// to torch.
class Roster {
  public:
    enum Answer { kSame = 0, kGradientsMoved = 1, kRebuild = 2 };
    enum Mode { kInPlace = 0, kStaged = 1, kWithoutState = 2, kSpread = 3 };  // kSpread: in place, of a DTensor

    // parameters: flat list in the order of param_groups. modes: one Mode each. slots: the index into the column of
    // gradient addresses, except for kWithoutState. Parameters are recorded as they are now.
    // hints: addresses of the objects behind each parameter, the same number for each, for prefetching.
    Roster(pybind11::capsule exchange_api, pybind11::tuple parameters, const std::vector<int>& modes,
           const std::vector<int64_t>& slots, std::vector<int64_t> hints);

    // Walks all parameters and writes the address of each gradient (0 for None) to column[slot * stride]. The column
    // of a staged parameter is left alone unless its gradient is None. After kRebuild the column is unspecified.
    // Unless that is the answer, the gradients stay where they are until `release`, whoever lets go of them.
    int refresh(const pybind11::list& groups, int64_t column, int64_t stride);
    // By slot: the gradients that are held, of spread parameters what this rank has of them; None where there is none.
    pybind11::list gradients() const;
    void release();

  private:
    struct Entry {
        PyObject* parameter;
        PyObject* known;                    // a gradient that is no negated view, borrowed: only to be compared
        pybind11::object attributes;        // its own, which tell whether it is still that one
        pybind11::object placements, mesh;  // of a spread parameter
        pybind11::object known_spec;        // of a gradient that was found to be spread alike
        Mode mode;
        int64_t slot;
        void* data;
        DLDevice device;
        DLDataType dtype;
        int32_t ndim;
        int64_t numel;
        size_t layout;  // shape, then strides, in layouts_
    };

    int walk(const pybind11::list& groups, int64_t* addresses, int64_t stride);
    bool is_negated(Entry& entry, PyObject* gradient);
    static bool is_spread_alike(Entry& entry, PyObject* gradient);
    bool view(PyObject* tensor, DLTensor* out) const;
    bool matches(const Entry& entry, const DLTensor& tensor) const;
    pybind11::object gradient(PyObject* parameter);

    pybind11::tuple parameters_;  // keeps them alive: an address that was freed could come back as another tensor's
    DLPackExchangeAPI* api_;
    std::vector<Entry> entries_;
    std::vector<int64_t> layouts_;
    std::vector<int64_t> hints_;
    size_t hints_per_entry_;
    std::vector<pybind11::object> held_;  // by slot
    bool interrupted_ = false;            // whether somebody else's Python has run during a walk
    PyTypeObject* getter_type_ = nullptr;
    getter getter_ = nullptr;
    void* getter_closure_ = nullptr;
};

}  // namespace regkernels
