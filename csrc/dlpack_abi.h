// The part of DLPack 1.x (https://github.com/dmlc/dlpack) that reads a tensor's address, shape and strides through
// the exchange table a framework publishes as `Tensor.__dlpack_c_exchange_api__`. Field order is the ABI.
#pragma once

#include <cstdint>

namespace regkernels {

struct DLDevice {
    int32_t type;
    int32_t id;
};

struct DLDataType {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
};

struct DLTensor {
    void* data;
    DLDevice device;
    int32_t ndim;
    DLDataType dtype;
    int64_t* shape;
    int64_t* strides;  // in elements
    uint64_t byte_offset;
};

struct DLPackExchangeAPI {
    uint32_t major;
    uint32_t minor;
    DLPackExchangeAPI* older;
    void* managed_tensor_allocator;
    void* managed_tensor_from_py_object;
    void* managed_tensor_to_py_object;
    // Fills `out` with pointers that stay valid as long as the tensor is not changed. Returns 0, or -1 with a Python
    // exception set.
    int (*tensor_from_py_object)(void* py_object, DLTensor* out);
    void* current_work_stream;
};

constexpr uint32_t kDLPackMajor = 1;

}  // namespace regkernels
