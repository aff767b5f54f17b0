#!/bin/sh
# Installs this checkout for $PYTHON, without a network, measures it on the GPU and tests it there. $@ names the parts:
#
#   bench        the quick benchmark
#   tests        the tests; what follows is passed on to pytest
#   record       the whole benchmark, for benchmarks/results: a quarter of an hour or more
#   SUITE        of the benchmark, as `python -m regkernels bench --list` names them
#
# None: the first three; options alone are those of pytest. Each but `record` ends within 8 minutes, with what there is by then: a borrowed machine may allow no more.
# The exit status is non-zero if any of them fails.
#
# OUT: a folder where records and logs are copied to, of which nothing may be left otherwise. JOBS: how many files of tests at a time.
# TRITON_CACHE_DIR: kernels that were compiled before (python -m tests.triton.compiled --cache FOLDER). REGKERNELS_TEST_DEVICE=cpu rehearses without a GPU:
# nothing is installed, tests are collected only, and the benchmark is that of one suite.
PYTHON=${PYTHON:-python3}
JOBS=${JOBS:-8}
LIMIT=420 # seconds; installing takes one more minute
cd "$(dirname "$0")/../.." || exit 1
device=${REGKERNELS_TEST_DEVICE:-cuda}
[ "$device" = cuda ] && results=$PWD/build/gpu || results=$PWD/build/gpu-rehearsal

if [ "$device" = cuda ] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null; then
    echo "make gpu: nothing done, as torch of '$PYTHON' is missing or finds no GPU (make gpu PYTHON=...)"
    exit 0
fi

rm -rf "$results" && mkdir -p "$results" || exit 1
keep() {
    [ -z "$OUT" ] || { mkdir -p "$OUT" && cp -R "$results/." "$OUT"; }
}
trap keep EXIT

install() {
    CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)} "$PYTHON" -m pip --disable-pip-version-check install \
        --verbose --no-build-isolation --no-deps --config-settings editable_mode=compat -e . \
        > "$results/install.log" 2>&1 || { cat "$results/install.log" >&2; return 1; }
}

# $1: where to, the rest: what. Interrupted at the limit, the benchmark keeps what it has measured.
bench() {
    folder=$results/$1
    shift
    pictures=$("$PYTHON" -c 'import matplotlib' 2> /dev/null || echo --no-pictures)
    timeout --signal=INT --kill-after=30 $LIMIT \
        "$PYTHON" -m regkernels bench --device "$device" --output "$folder" $pictures "$@"
}

# A process per file, since nothing works any more on a device after an invalid access to its memory. The long ones come first.
tests() {
    mkdir -p "$results/tests"
    collect='' files=1
    [ "$device" = cuda ] || { collect=--collect-only files=99; }
    ls -S tests/gpu/test_*.py | PYTHON=$PYTHON LOGS=$results/tests timeout --kill-after=30 $LIMIT \
        xargs -P "$JOBS" -n $files sh -c '
            for file; do :; done
            "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu "$@" > "$LOGS/$(basename "$file" .py).log" 2>&1
            case $? in 0 | 5) ;; *) exit 1 ;; esac # 5: nothing is selected in this file
        ' sh $collect "$@"
    ended=$?
    grep -h -e '^FAILED' -e '^ERROR' "$results"/tests/*.log
    tail -q -n 1 "$results"/tests/*.log
    [ $ended -ne 124 ] || echo "the tests were ended after $LIMIT seconds"
    return $ended
}

[ "$device" != cuda ] || install || exit 1
"$PYTHON" -m regkernels info | tee "$results/info.txt"
case ${1:-} in
    '') set -- bench tests record ;;
    -*) set -- tests "$@" ;;
esac

status=0
while [ $# -gt 0 ]; do
    part=$1
    shift
    echo "--- $part"
    case $part in
        bench)
            [ "$device" = cuda ] && only='' || only='--suite elements'
            bench bench --quick $only || status=1
            ;;
        tests)
            # What comes next belongs to pytest, if it is no part.
            case ${1:-} in -*) tests "$@" || status=1; break ;; *) tests || status=1 ;; esac
            ;;
        record)
            [ "$device" = cuda ] || continue
            "$PYTHON" -m regkernels bench --device cuda || status=1
            cp -R benchmarks/results "$results/record"
            ;;
        *) bench "$part" --suite "$part" || status=1 ;;
    esac
done
exit $status
