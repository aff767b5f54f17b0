// regkernels._C: the kernels as functions of addresses. Nothing here validates; Python has done that before.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <initializer_list>

#include "dispatch.h"
#include "parallel.h"
#include "roster.h"
#include "states.h"
#include "threads.h"

namespace py = pybind11;
using namespace regkernels;

namespace {

template <class T>
T* pointer(int64_t address) {
    return reinterpret_cast<T*>(address);
}

template <class Function>
void take(Function*& function, int64_t address) {
    function = reinterpret_cast<Function*>(address);
}

std::vector<Hyper> hyper_table(const py::list& rows) {
    constexpr Py_ssize_t kFields = sizeof(Hyper) / sizeof(double);
    std::vector<Hyper> table(rows.size());
    for (size_t i = 0; i < table.size(); ++i) {
        PyObject* row = PyList_GET_ITEM(rows.ptr(), static_cast<Py_ssize_t>(i));
        if (!PyTuple_Check(row) || PyTuple_GET_SIZE(row) != kFields) throw py::type_error("a row must be a Hyper");
        auto* fields = reinterpret_cast<double*>(&table[i]);
        for (Py_ssize_t k = 0; k < kFields; ++k) fields[k] = PyFloat_AsDouble(PyTuple_GET_ITEM(row, k));
    }
    if (PyErr_Occurred()) throw py::error_already_set();
    return table;
}

// In the order of the list, which is the order of the numbers that stand for them.
py::list names(std::initializer_list<const char*> list) {
    py::list result;
    for (const char* name : list) result.append(name);
    return result;
}

py::dict layout() {
#define REGKERNELS_NAME(NAME, ...) #NAME,
#define REGKERNELS_NAMES(NAME, COUNT) REGKERNELS_NAMES_##COUNT(NAME)
#define REGKERNELS_NAMES_3(NAME) #NAME "0", #NAME "1", #NAME "2",
    py::dict layout;
    layout["segment"] = names({REGKERNELS_SEGMENT(REGKERNELS_NAME, REGKERNELS_NAMES)});
    layout["hyper"] = names({REGKERNELS_HYPER(REGKERNELS_NAME, REGKERNELS_NAME, REGKERNELS_NAME)});
    layout["sums"] = names({REGKERNELS_SUMS(REGKERNELS_NAME)});
    layout["dtypes"] = names({REGKERNELS_DTYPES(REGKERNELS_NAME)});
    layout["rules"] = names({REGKERNELS_RULES(REGKERNELS_NAME)});
    layout["metrics"] = names({REGKERNELS_METRICS(REGKERNELS_NAME)});
    layout["roundings"] = names({REGKERNELS_ROUNDINGS(REGKERNELS_NAME)});
    layout["penalties"] = names({REGKERNELS_PENALTIES(REGKERNELS_NAME)});
    layout["formulas"] = names({REGKERNELS_FORMULAS(REGKERNELS_NAME)});
    layout["chunk"] = kChunk;
    layout["interface"] = kInterface;
    return layout;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "Kernels over raw addresses; use the regkernels package instead.";

    m.def(
        "update",
        [](int64_t segments, int64_t count, const py::list& rows, int64_t totals) {
            const std::vector<Hyper> table = hyper_table(rows);
            std::vector<Sums> sums(static_cast<size_t>(totals));
            {
                py::gil_scoped_release release;
                update(active_kernels(), pointer<const Segment>(segments), count, table.data(),
                       totals ? sums.data() : nullptr);
            }
            py::list result;
            for (const Sums& of_total : sums) {
                py::tuple line(kSums);
                size_t column = 0;
#define REGKERNELS_COLUMN(NAME) line[column++] = of_total.NAME;
                REGKERNELS_SUMS(REGKERNELS_COLUMN)
                result.append(line);
            }
            return result;
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
            return py::make_tuple(sums.absolute, sums.square);
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

    m.def(
        "proximal",
        [](int64_t segments, int64_t count, const py::list& rows) {
            const std::vector<Hyper> table = hyper_table(rows);
            py::gil_scoped_release release;
            proximal(active_kernels(), pointer<const Segment>(segments), count, table.data());
        },
        py::arg("segments"), py::arg("count"), py::arg("rows"));

    m.def(
        "value",
        [](int64_t runs, int64_t count, int64_t formula, const std::array<double, 4>& n) {
            py::gil_scoped_release release;
            return value(active_kernels(), pointer<const Run>(runs), count, formula, {n[0], n[1], n[2], n[3]});
        },
        py::arg("runs"), py::arg("count"), py::arg("formula"), py::arg("numbers"));
    m.def(
        "slope",
        [](int64_t runs, int64_t count, int64_t formula, const std::array<double, 4>& n) {
            py::gil_scoped_release release;
            slope(active_kernels(), pointer<const Run>(runs), count, formula, {n[0], n[1], n[2], n[3]});
        },
        py::arg("runs"), py::arg("count"), py::arg("formula"), py::arg("numbers"));
    m.def(
        "weighted_value",
        [](int64_t runs, int64_t count) {
            Weighted total;
            {
                py::gil_scoped_release release;
                total = weighted_value(active_kernels(), pointer<const WeightedRun>(runs), count);
            }
            return py::make_tuple(total.sum, total.refused);
        },
        py::arg("runs"), py::arg("count"));
    m.def(
        "weighted_slope",
        [](int64_t runs, int64_t count, double scale) {
            py::gil_scoped_release release;
            weighted_slope(active_kernels(), pointer<const WeightedRun>(runs), count, scale);
        },
        py::arg("runs"), py::arg("count"), py::arg("scale"));
    m.def(
        "group_norms",
        [](int64_t runs, int64_t count) {
            py::gil_scoped_release release;
            return group_norms(active_kernels(), pointer<const GroupRun>(runs), count);
        },
        py::arg("runs"), py::arg("count"));
    m.def(
        "group_scale",
        [](int64_t runs, int64_t count) {
            py::gil_scoped_release release;
            group_scale(active_kernels(), pointer<const GroupRun>(runs), count);
        },
        py::arg("runs"), py::arg("count"));

    py::class_<Roster>(m, "Roster")
        .def(py::init<py::capsule, py::tuple, const std::vector<int>&, const std::vector<int64_t>&,
                      std::vector<int64_t>>(),
             py::arg("exchange_api"), py::arg("parameters"), py::arg("modes"), py::arg("slots"), py::arg("hints"))
        .def("refresh", &Roster::refresh, py::arg("groups"), py::arg("column"), py::arg("stride"))
        .def("gradients", &Roster::gradients)
        .def("release", &Roster::release);

    py::class_<States>(m, "States")
        .def(py::init<py::capsule, py::object, const py::list&>(), py::arg("exchange_api"), py::arg("state"),
             py::arg("entries"))
        .def("hold", &States::hold);

    m.def("layout", &layout);
    m.def(
        "use_runtime",
        [](int64_t parallel, int64_t max_threads, int64_t num_threads, int64_t thread_num, int64_t pause) {
            Runtime runtime;
            take(runtime.parallel, parallel);
            take(runtime.max_threads, max_threads);
            take(runtime.num_threads, num_threads);
            take(runtime.thread_num, thread_num);
            take(runtime.pause_resource_all, pause);
            use_runtime(runtime);
        },
        py::arg("parallel"), py::arg("max_threads"), py::arg("num_threads"), py::arg("thread_num"), py::arg("pause"));
    m.def("num_threads", &num_threads);
    m.def("end_waiting_threads", &end_waiting_threads);
    m.def("use_one_thread", &use_one_thread);
    m.def("isa", [] { return std::string(active_kernels().name); });
    m.def("set_isa", &set_isa, py::arg("name"));
    m.def("available_isas", &available_isas);
}
