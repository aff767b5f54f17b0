#include "roster.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace py = pybind11;

namespace regkernels {
namespace {

constexpr size_t kPrefetchDistance = 6;
constexpr int kLinesPerObject = 4;

// Memory that was freed has address 0, of a view into it the offset of its first element. That may be where memory is,
// too, so somebody has to be asked.
constexpr uintptr_t kSuspicious = uintptr_t{1} << 32;

// A tensor is spread over half a dozen heap objects, and a training step leaves none of them in the caches: following
// the pointers one by one would take four times as long as the check itself. A hint that is out of date does no harm.
// Inlined by force: a function that only prefetches counts as free of effects, and the compiler drops calls of it.
__attribute__((always_inline)) inline void prefetch_objects(const int64_t* hints, size_t count) {
    for (size_t hint = 0; hint < count; ++hint)
        for (int line = 0; line < kLinesPerObject; ++line)
            __builtin_prefetch(reinterpret_cast<const void*>(hints[hint] + line * 64));
}

py::object owned(PyObject* found) {
    if (!found) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(found);
}

py::object attribute(PyObject* object, PyObject* name) { return owned(PyObject_GetAttr(object, name)); }

// What makes `grad` of the tensors of a class; nothing where that has none.
py::object grad_of(PyTypeObject* type) {
    PyObject* found = PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "grad");
    if (!found) PyErr_Clear();
    return py::reinterpret_steal<py::object>(found);
}

PyObject* const kSpec = PyUnicode_InternFromString("_spec");
PyObject* const kPlacements = PyUnicode_InternFromString("placements");
PyObject* const kMesh = PyUnicode_InternFromString("mesh");

bool are_equal(const py::object& a, const py::object& b) {
    const int answer = PyObject_RichCompareBool(a.ptr(), b.ptr(), Py_EQ);
    if (answer < 0) throw py::error_already_set();
    return answer != 0;
}

// Whether it is of torch's own class, whose methods are torch's.
bool is_plain(PyObject* tensor) {
    static PyObject* const plain = PyObject_GetAttrString(PyImport_AddModule("torch"), "Tensor");
    return reinterpret_cast<PyObject*>(Py_TYPE(tensor)) == plain;
}

// What this rank has of a torch.distributed.tensor.DTensor. Nothing where that is no plain tensor, such as one that has
// yet to arrive.
py::object local_tensor(PyObject* tensor) {
    static PyObject* const name = PyUnicode_InternFromString("_local_tensor");
    py::object local = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor, name));
    if (!local) PyErr_Clear();  // a gradient that is no DTensor
    return local && is_plain(local.ptr()) ? local : py::object();
}

// Whether there is memory behind a tensor's elements, of which there are some.
bool has_memory(PyObject* tensor, const void* data) {
    if (reinterpret_cast<uintptr_t>(data) >= kSuspicious) return true;
    if (!data) return false;
    const py::object storage = py::handle(tensor).attr("untyped_storage")();
    return storage.attr("nbytes")().cast<int64_t>() > 0;
}

}  // namespace

Roster::Roster(py::capsule exchange_api, py::tuple parameters, const std::vector<int>& modes,
               const std::vector<int64_t>& slots, std::vector<int64_t> hints)
    : parameters_(parameters),
      api_(static_cast<DLPackExchangeAPI*>(PyCapsule_GetPointer(exchange_api.ptr(), "dlpack_exchange_api"))),
      hints_(std::move(hints)) {
    if (!api_) throw py::error_already_set();
    while (api_ && api_->major != kDLPackMajor) api_ = api_->older;
    if (!api_ || !api_->tensor_from_py_object) throw std::runtime_error("unsupported DLPack exchange table");
    if (modes.size() != parameters.size() || slots.size() != parameters.size() ||
        hints_.size() % (parameters.size() ? parameters.size() : 1))
        throw std::invalid_argument("modes, slots and hints: one per parameter");

    hints_per_entry_ = parameters.size() ? hints_.size() / parameters.size() : 0;
    entries_.reserve(parameters.size());
    for (size_t i = 0; i < parameters.size(); ++i) {
        PyObject* parameter = PyTuple_GET_ITEM(parameters_.ptr(), static_cast<Py_ssize_t>(i));
        Entry entry{};
        entry.parameter = parameter;
        entry.mode = static_cast<Mode>(modes[i]);
        entry.slot = slots[i];
        entry.numel = 1;
        entry.layout = layouts_.size();
        if (entry.mode == kInPlace || entry.mode == kSpread) {
            if (entry.mode == kSpread) {
                const py::object spec = attribute(parameter, kSpec);
                entry.placements = attribute(spec.ptr(), kPlacements);
                entry.mesh = attribute(spec.ptr(), kMesh);
            }
            DLTensor tensor;
            const py::object local = entry.mode == kSpread ? local_tensor(parameter) : py::object();
            if (!view(local ? local.ptr() : parameter, &tensor)) throw py::error_already_set();
            entry.data = tensor.data;
            entry.device = tensor.device;
            entry.dtype = tensor.dtype;
            entry.ndim = tensor.ndim;
            for (int d = 0; d < tensor.ndim; ++d) entry.numel *= tensor.shape[d];
            layouts_.insert(layouts_.end(), tensor.shape, tensor.shape + tensor.ndim);
            layouts_.insert(layouts_.end(), tensor.strides, tensor.strides + tensor.ndim);
        }
        if (entry.mode != kWithoutState && static_cast<size_t>(entry.slot) >= held_.size())
            held_.resize(static_cast<size_t>(entry.slot) + 1);
        entries_.push_back(std::move(entry));
    }

    // `p.grad` is a slot of the C type: called directly it spares the attribute lookup, a fifth of the whole check.
    if (!entries_.empty()) {
        PyTypeObject* type = Py_TYPE(entries_[0].parameter);
        const py::object descriptor = grad_of(type);
        if (descriptor && Py_TYPE(descriptor.ptr()) == &PyGetSetDescr_Type) {
            auto* slot = reinterpret_cast<PyGetSetDescrObject*>(descriptor.ptr())->d_getset;
            getter_type_ = type;
            getter_ = slot->get;
            getter_closure_ = slot->closure;
        }
    }
}

// torch negates some tensors lazily, by a mark that DLPack does not tell. Asking costs more than all the rest, as torch
// lets go of the interpreter lock for the answer, so a gradient that stays is asked twice and then no more. The
// dictionary of its attributes tells a tensor that stayed from a new one at the same address, and keeps no gradient
// alive. A weak reference would do so, too, but torch.utils.swap_tensors, and with it module.to(), refuses tensors that
// have one.
bool Roster::is_negated(Entry& entry, PyObject* gradient) {
    // Where the question runs somebody else's code, it is put once.
    const bool again = gradient == entry.known || !is_plain(gradient);
    if (gradient == entry.known && entry.attributes) {
        PyObject** attributes = _PyObject_GetDictPtr(gradient);
        if (attributes && *attributes == entry.attributes.ptr()) return false;
    }
    static PyObject* const name = PyUnicode_InternFromString("is_neg");
    interrupted_ |= !is_plain(gradient);
    const py::object answer = owned(PyObject_CallMethodNoArgs(gradient, name));
    if (answer.ptr() != Py_False) return true;
    entry.known = gradient;
    entry.attributes = py::reinterpret_steal<py::object>(again ? PyObject_GenericGetDict(gradient, nullptr) : nullptr);
    if (again && !entry.attributes) PyErr_Clear();  // it has none: it is asked each time
    return false;
}

// One that is placed otherwise has to be redistributed, by Python. Gradients come with the same few specs again and
// again.
bool Roster::is_spread_alike(Entry& entry, PyObject* gradient) {
    py::object spec = py::reinterpret_steal<py::object>(PyObject_GetAttr(gradient, kSpec));
    if (!spec) {
        PyErr_Clear();
        return false;
    }
    if (spec.is(entry.known_spec)) return true;
    if (!are_equal(attribute(spec.ptr(), kPlacements), entry.placements) ||
        !are_equal(attribute(spec.ptr(), kMesh), entry.mesh))
        return false;
    entry.known_spec = std::move(spec);
    return true;
}

bool Roster::view(PyObject* tensor, DLTensor* out) const { return api_->tensor_from_py_object(tensor, out) == 0; }

bool Roster::matches(const Entry& entry, const DLTensor& tensor) const {
    if (tensor.ndim != entry.ndim || tensor.device.type != entry.device.type || tensor.device.id != entry.device.id ||
        tensor.dtype.code != entry.dtype.code || tensor.dtype.bits != entry.dtype.bits ||
        tensor.dtype.lanes != entry.dtype.lanes || tensor.byte_offset != 0)
        return false;
    const int64_t* shape = layouts_.data() + entry.layout;
    const int64_t* strides = shape + entry.ndim;
    for (int d = 0; d < entry.ndim; ++d) {
        if (tensor.shape[d] != shape[d]) return false;
        // The stride of a dimension of one element says nothing about memory, and torch sets it as it likes.
        if (shape[d] > 1 && entry.numel > 0 && tensor.strides[d] != strides[d]) return false;
    }
    return true;
}

py::object Roster::gradient(PyObject* parameter) {
    PyTypeObject* type = Py_TYPE(parameter);
    if (type == getter_type_) return owned(getter_(parameter, getter_closure_));
    // Of another class: most have torch's own `grad`, which runs nothing of anybody else's.
    interrupted_ |= !getter_type_ || !grad_of(type).is(grad_of(getter_type_));
    return owned(PyObject_GetAttrString(parameter, "grad"));
}

int Roster::refresh(const py::list& groups, int64_t column, int64_t stride) {
    auto* addresses = reinterpret_cast<int64_t*>(column);
    try {
        interrupted_ = false;
        int answer = walk(groups, addresses, stride);
        // What subclasses do when they are asked may have changed what was looked at before. They are asked once.
        if (interrupted_ && answer != kRebuild) answer = std::max(answer, walk(groups, addresses, stride));
        if (answer == kRebuild) release();
        return answer;
    } catch (...) {
        release();
        throw;
    }
}

int Roster::walk(const py::list& groups, int64_t* addresses, int64_t stride) {
    bool moved = false;
    size_t next = 0;
    for (py::handle group : groups) {
        if (!PyList_Check(group.ptr())) return kRebuild;
        // Looking at a tensor may run anything, which may change the list: its length is taken anew each time, and its
        // items are only compared.
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(group.ptr()); ++i, ++next) {
            if (next == entries_.size()) return kRebuild;
            const size_t ahead = next + kPrefetchDistance;
            if (ahead < entries_.size()) prefetch_objects(&hints_[ahead * hints_per_entry_], hints_per_entry_);
            Entry& entry = entries_[next];
            if (PyList_GET_ITEM(group.ptr(), i) != entry.parameter) return kRebuild;
            py::object grad = gradient(entry.parameter);
            const bool none = grad.is_none();
            if (entry.mode == kWithoutState) {
                if (!none) return kRebuild;
                continue;
            }
            int64_t& address = addresses[entry.slot * stride];
            py::object& kept = held_[static_cast<size_t>(entry.slot)];
            if (none) {
                moved |= address != 0;
                address = 0;
                kept = py::object();
                continue;
            }
            if (entry.mode == kStaged) {
                if (address == 0) return kRebuild;  // the address of its staging buffer was dropped with the gradient
                kept = std::move(grad);
                continue;
            }
            const bool spread = entry.mode == kSpread;
            if (spread && !is_spread_alike(entry, grad.ptr())) return kRebuild;
            py::object weight;
            if (spread) {
                weight = local_tensor(entry.parameter);
                grad = local_tensor(grad.ptr());
                if (!weight || !grad) return kRebuild;
            }
            DLTensor tensor;
            if (!view(spread ? weight.ptr() : entry.parameter, &tensor)) throw py::error_already_set();
            if (tensor.data != entry.data || !matches(entry, tensor)) return kRebuild;
            if (entry.numel && !tensor.data) return kRebuild;  // freed before the table was made
            if (!view(grad.ptr(), &tensor)) {
                PyErr_Clear();  // sparse or otherwise without an address: Python says what is wrong with it
                return kRebuild;
            }
            if (!matches(entry, tensor) || is_negated(entry, grad.ptr())) return kRebuild;
            if (entry.numel && !has_memory(grad.ptr(), tensor.data)) return kRebuild;  // freed: Python says so
            // An empty tensor has no address, but its gradient is there: 0 would say that it is None.
            const int64_t now = entry.numel == 0 ? 1 : reinterpret_cast<int64_t>(tensor.data);
            moved |= now != address;
            address = now;
            kept = std::move(grad);
        }
    }
    if (next != entries_.size()) return kRebuild;
    return moved ? kGradientsMoved : kSame;
}

py::list Roster::gradients() const {
    py::list found(held_.size());
    for (size_t slot = 0; slot < held_.size(); ++slot) found[slot] = held_[slot] ? held_[slot] : py::object(py::none());
    return found;
}

void Roster::release() {
    for (py::object& kept : held_) py::object dropped = std::move(kept);
}

}  // namespace regkernels
