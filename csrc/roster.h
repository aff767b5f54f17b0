// Answers, once per step: are the parameters and gradients still what the table of segments was built from?
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

#include "dlpack_abi.h"

namespace regkernels {

// The functions of torch's stable C ABI (torch/csrc/inductor/aoti_torch/c/shim.h) that tell where a tensor is. They
// take a handle (an at::Tensor*) and return 0, or an error code.
struct StableABI {
    int32_t (*get_data_ptr)(void* handle, void** out) = nullptr;
    int32_t (*get_dim)(void* handle, int64_t* out) = nullptr;
    int32_t (*get_sizes)(void* handle, int64_t** out) = nullptr;
    int32_t (*get_strides)(void* handle, int64_t** out) = nullptr;
    int32_t (*get_dtype)(void* handle, int32_t* out) = nullptr;
    int32_t (*delete_tensor_object)(void* handle) = nullptr;
};

// A step must notice every change of memory behind its back: gradients that backward allocated anew or set to None,
// `p.data = ...`, entries of param_groups that were exchanged. In Python these checks cost several times what the
// update of a small tensor costs, so they are made here, through torch's published DLPack table and without linking
// to torch.
class Roster {
  public:
    enum Answer { kSame = 0, kGradientsMoved = 1, kRebuild = 2 };
    enum Mode { kInPlace = 0, kStaged = 1, kWithoutState = 2 };

    // parameters: flat list in the order of param_groups. modes: one Mode each. slots: for kInPlace and kStaged, the
    // index into the column of gradient addresses. Parameters are recorded as they are now.
    // handles and functions: a capsule per parameter and the addresses of StableABI's functions; both empty where torch
    // has none, then parameters are read as gradients are, through the DLPack table, which costs several times as much
    // for a subclass of Tensor such as Parameter. Handles are deleted with the roster.
    // hints: addresses of the objects behind each parameter, the same number for each, for prefetching.
    Roster(pybind11::capsule exchange_api, pybind11::list parameters, const std::vector<int>& modes,
           const std::vector<int64_t>& slots, pybind11::list handles, const std::vector<int64_t>& functions,
           std::vector<int64_t> hints);
    ~Roster();
    Roster(const Roster&) = delete;
    Roster& operator=(const Roster&) = delete;

    // Walks all parameters and writes the address of each gradient (0 for None) to column[slot * stride]. The column
    // of a staged parameter is left alone unless its gradient is None. After kRebuild the column is unspecified.
    int refresh(const pybind11::list& groups, int64_t column, int64_t stride) const;

  private:
    struct Entry {
        PyObject* parameter;
        Mode mode;
        int64_t slot;
        void* handle;
        void* data;
        DLDevice device;
        DLDataType dtype;
        int32_t ndim;
        int64_t numel;
        int32_t torch_dtype;
        size_t layout;  // shape, then strides, in layouts_
    };

    bool view(PyObject* tensor, DLTensor* out) const;
    bool matches(const Entry& entry, const DLTensor& tensor) const;
    bool has_layout(const Entry& entry, const int64_t* shape, const int64_t* strides) const;
    bool parameter_is_there(const Entry& entry) const;
    PyObject* gradient(PyObject* parameter) const;

    pybind11::list parameters_;  // keeps them alive: an address that was freed could come back as another tensor's
    DLPackExchangeAPI* api_;
    StableABI abi_;
    std::vector<Entry> entries_;
    std::vector<int64_t> layouts_;
    std::vector<int64_t> hints_;
    size_t hints_per_entry_;
    PyTypeObject* getter_type_ = nullptr;
    getter getter_ = nullptr;
    void* getter_closure_ = nullptr;
};

}  // namespace regkernels
