// regkernels._C: the kernels as functions of addresses. Nothing here validates; Python has done that before.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "dispatch.h"
#include "parallel.h"
#include "roster.h"

namespace py = pybind11;
using namespace regkernels;

namespace {

template <class T>
T* pointer(int64_t address) {
    return reinterpret_cast<T*>(address);
}

py::dict layout() {
    py::dict layout;
    layout["segment"] = py::cast(std::vector<std::string>(std::begin(kSegmentFields), std::end(kSegmentFields)));
    layout["hyper"] = py::cast(std::vector<std::string>(std::begin(kHyperFields), std::end(kHyperFields)));
    layout["sums"] = std::vector<std::string>{"absolute", "square", "nonzeros", "gradient"};
    layout["dtypes"] = std::vector<std::string>{"float64", "float32", "float16", "bfloat16"};
    layout["rules"] = std::vector<std::string>{"sgd", "momentum", "adam", "amsgrad"};
    layout["chunk"] = kChunk;
    return layout;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "Kernels over raw addresses; use the regkernels package instead.";

    m.def(
        "update",
        [](int64_t segments, int64_t count, int64_t rows, int64_t totals) {
            py::gil_scoped_release release;
            update(active_kernels(), pointer<const Segment>(segments), count, pointer<const Hyper>(rows),
                   pointer<Sums>(totals));
        },
        py::arg("segments"), py::arg("count"), py::arg("rows"), py::arg("totals"));
    m.def(
        "reduce",
        [](int64_t runs, int64_t count) {
            Sums sums;
            {
                py::gil_scoped_release release;
                sums = reduce(active_kernels(), pointer<const Run>(runs), count);
            }
            return py::make_tuple(sums.absolute, sums.square, sums.nonzeros);
        },
        py::arg("runs"), py::arg("count"));
    m.def(
        "penalty_gradient",
        [](int64_t runs, int64_t count, double absolute, double square) {
            py::gil_scoped_release release;
            penalty_gradient(active_kernels(), pointer<const Run>(runs), count, absolute, square);
        },
        py::arg("runs"), py::arg("count"), py::arg("absolute"), py::arg("square"));
    m.def(
        "soft_threshold",
        [](int64_t runs, int64_t count, double threshold) {
            py::gil_scoped_release release;
            soft_threshold(active_kernels(), pointer<const Run>(runs), count, threshold);
        },
        py::arg("runs"), py::arg("count"), py::arg("threshold"));

    py::class_<Roster>(m, "Roster")
        .def(py::init<py::capsule, py::list, const std::vector<int>&, const std::vector<int64_t>&>(),
             py::arg("exchange_api"), py::arg("parameters"), py::arg("modes"), py::arg("slots"))
        .def("refresh", &Roster::refresh, py::arg("groups"), py::arg("column"), py::arg("stride"));

    m.def("layout", &layout);
    m.def("num_threads", &num_threads);
    m.def("isa", [] { return std::string(active_kernels().name); });
    m.def("set_isa", &set_isa, py::arg("name"));
    m.def("available_isas", &available_isas);
}
