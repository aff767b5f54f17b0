#!/bin/sh
# Builds the extension with the address and undefined-behaviour sanitizers, in build/sanitize beside a copy of the package, so
# that the one in use stays what it is, and runs there what works on memory in every way. Arguments are passed on to pytest.
PYTHON=${PYTHON:-.venv/bin/python}
cd "$(dirname "$0")/.." || exit 1
case $PYTHON in /*) ;; *) PYTHON=$PWD/$PYTHON ;; esac
tools=$(dirname "$PYTHON")
build=build/sanitize

mkdir -p $build
echo "building the extension with sanitizers (minutes, where csrc has changed)"
{ "$tools/cmake" -S. -B$build/cmake -GNinja -DCMAKE_MAKE_PROGRAM="$tools/ninja" -DCMAKE_BUILD_TYPE=Release \
    -DPython_EXECUTABLE="$PYTHON" -Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)" -DREGKERNELS_SANITIZE=ON \
    && "$tools/cmake" --build $build/cmake; } > $build/build.log 2>&1 || { cat $build/build.log >&2; exit 1; }
rm -rf $build/tree && mkdir $build/tree && cp -R regkernels tests pyproject.toml $build/tree || exit 1
rm -f $build/tree/regkernels/_C*.so && cp $build/cmake/lib/_C* $build/tree/regkernels || exit 1
cd $build/tree || exit 1

# The interpreter and torch are not instrumented, so that what they allocate for good would be taken for leaks, and the library has to
# be there before them, with the one whose exceptions it looks for as it begins. Objects of Python come from malloc here, which sees each
# of them end. Reports go to files: what a process prints before it dies is lost with pytest's capture.
preloaded="$(${CXX:-c++} -print-file-name=libasan.so) $(${CXX:-c++} -print-file-name=libstdc++.so.6)"
report=../report
rm -f $report.*
checked() {
    LD_PRELOAD=$preloaded ASAN_OPTIONS=detect_leaks=0:log_path=$PWD/$report \
        UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1:log_path=$PWD/$report PYTHONMALLOC=malloc OMP_WAIT_POLICY=passive \
        "$PYTHON" -m pytest -q -n logical --dist loadfile --no-loadscope-reorder "$@"
    case $? in 0 | 5) ;; *) return 1 ;; esac # 5: "$@" selects nothing
}

# What limits a process's addresses leaves none for those that a sanitizer takes.
status=0
checked -m "not attacks" --ignore tests/optim/step/test_out_of_memory.py tests/fuzz tests/table \
    tests/backends/test_layouts.py tests/backends/test_bits.py tests/backends/test_penalised_bits.py tests/backends/test_group_bits.py tests/backends/test_sums.py \
    tests/optim/step tests/optim/test_exchanged_parameters.py tests/optim/checkpoint/test_refusals.py "$@" || status=1
checked -m attacks tests "$@" || status=1
cat $report.* 2> /dev/null && status=1
exit $status
