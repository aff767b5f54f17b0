#include "states.h"

#include <stdexcept>
#include <unordered_map>
#include <utility>

namespace py = pybind11;

namespace regkernels {

States::States(py::capsule exchange_api, py::object state, const py::list& entries)
    : state_(std::move(state)),
      api_(static_cast<DLPackExchangeAPI*>(PyCapsule_GetPointer(exchange_api.ptr(), "dlpack_exchange_api"))) {
    if (!api_) throw py::error_already_set();
    while (api_ && api_->major != kDLPackMajor) api_ = api_->older;
    if (!api_ || !api_->tensor_from_py_object) throw std::runtime_error("unsupported DLPack exchange table");
    std::unordered_map<PyObject*, py::tuple> of_key;
    for (py::handle entry : entries) {
        auto tuple = py::reinterpret_borrow<py::tuple>(entry);
        of_key.emplace(tuple[0].ptr(), tuple);
    }
    if (!PyDict_Check(state_.ptr())) {
        comparable_ = of_key.empty();
        return;
    }
    PyObject *key, *value;
    Py_ssize_t position = 0;
    size_t found = 0;
    while (PyDict_Next(state_.ptr(), &position, &key, &value)) {
        Key one{py::reinterpret_borrow<py::object>(key), py::object(), seen_.size(), 0};
        const auto ours = of_key.find(key);
        if (ours != of_key.end()) {
            ++found;
            one.value = ours->second[1];
            comparable_ &= value == one.value.ptr() && PyDict_Check(value);
            const py::list names = ours->second[2], tensors = ours->second[3], spread = ours->second[4];
            one.count = names.size();
            for (size_t i = 0; i < names.size(); ++i) {
                Seen seen{names[i], tensors[i], spread[i].cast<bool>(), {}, layouts_.size()};
                if (!look(seen, &seen.view)) {
                    PyErr_Clear();  // not a tensor with an address
                    comparable_ = false;
                    return;
                }
                layouts_.insert(layouts_.end(), seen.view.shape, seen.view.shape + seen.view.ndim);
                layouts_.insert(layouts_.end(), seen.view.strides, seen.view.strides + seen.view.ndim);
                seen_.push_back(std::move(seen));
            }
        }
        keys_.push_back(std::move(one));
    }
    comparable_ &= found == of_key.size();
}

// Of a DTensor the memory that this rank has.
bool States::look(const Seen& seen, DLTensor* out) const {
    if (!seen.spread) return api_->tensor_from_py_object(seen.tensor.ptr(), out) == 0;
    static PyObject* const name = PyUnicode_InternFromString("_local_tensor");
    const py::object local = py::reinterpret_steal<py::object>(PyObject_GetAttr(seen.tensor.ptr(), name));
    return local && api_->tensor_from_py_object(local.ptr(), out) == 0;
}

bool States::is_same(const Seen& seen) const {
    DLTensor now;
    if (!look(seen, &now)) {
        PyErr_Clear();
        return false;
    }
    const DLTensor& then = seen.view;
    if (now.data != then.data || now.byte_offset != then.byte_offset || now.ndim != then.ndim ||
        now.device.type != then.device.type || now.device.id != then.device.id || now.dtype.code != then.dtype.code ||
        now.dtype.bits != then.dtype.bits || now.dtype.lanes != then.dtype.lanes)
        return false;
    const int64_t* shape = layouts_.data() + seen.layout;
    const int64_t* strides = shape + then.ndim;
    for (int d = 0; d < then.ndim; ++d)
        if (now.shape[d] != shape[d] || now.strides[d] != strides[d]) return false;
    return true;
}

bool States::hold() const {
    if (!comparable_ ||
        (PyDict_Check(state_.ptr()) && PyDict_GET_SIZE(state_.ptr()) != static_cast<Py_ssize_t>(keys_.size())))
        return false;
    PyObject *key, *value;
    Py_ssize_t position = 0;
    for (const Key& one : keys_) {
        if (!PyDict_Next(state_.ptr(), &position, &key, &value) || key != one.key.ptr()) return false;
        if (!one.value) continue;
        if (value != one.value.ptr()) return false;
        for (size_t i = one.first; i < one.first + one.count; ++i) {
            PyObject* tensor = PyDict_GetItemWithError(value, seen_[i].name.ptr());
            if (!tensor && PyErr_Occurred()) throw py::error_already_set();
            if (tensor != seen_[i].tensor.ptr() || !is_same(seen_[i])) return false;
        }
    }
    return true;
}

}  // namespace regkernels
