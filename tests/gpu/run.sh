#!/bin/sh
# Installs this checkout for $PYTHON, without a network, tests it on the GPU, measures it and keeps the record.
# Arguments are passed on to pytest. The benchmark runs whether or not the tests pass; the exit status is non-zero if
# either of them fails.
PYTHON=${PYTHON:-python3}
cd "$(dirname "$0")/../.." || exit 1

if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null; then
    echo "make gpu: nothing done, as torch of '$PYTHON' is missing or finds no GPU (make gpu PYTHON=...)"
    exit 0
fi

mkdir -p build
"$PYTHON" -m pip --disable-pip-version-check install --verbose --no-build-isolation --no-deps \
    --config-settings editable_mode=compat -e . \
    > build/gpu-install.log 2>&1 || { cat build/gpu-install.log >&2; exit 1; }
"$PYTHON" -m regkernels info || exit 1

# A process per file, since nothing works any more on a device after an invalid access to its memory.
status=0
for file in tests/gpu/test_*.py; do
    "$PYTHON" -m pytest -q -m gpu "$file" "$@"
    case $? in 0 | 5) ;; *) status=1 ;; esac # 5: "$@" selects nothing in this file
done
"$PYTHON" -m regkernels bench --device cuda || status=1
exit $status
