#!/usr/bin/env bash
# Run benchmarks/gpu/check.py on a GPU machine, with the packages of a bundle (`make gpu-bundle`) and without a network.
#
#   bash run.sh receive             check the slices that lie beside this file, and take them; one call a slice will do
#   bash run.sh [--seconds N] [...] take them, install what is whole, and run; other options are those of gpu/check.py
#
# PYTHON  the interpreter that has torch (python3)
# STORE   what was received and installed (/tmp/vitdeploy-gpu)
# OUT     the results (gpu-results), written as they come
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
store=${STORE:-/tmp/vitdeploy-gpu}
mkdir -p "$store"

# The project is the checkout around the bundle, or else the archive in it.
project=$(dirname "$here")
if [ ! -f "$project/benchmarks/gpu/machine.py" ]; then
    project=$store/project
    rm -rf "$project"
    mkdir -p "$project"
    tar -xzf "$here/project.tar.gz" -C "$project"
fi
export PYTHONPATH="$project/benchmarks${PYTHONPATH:+:$PYTHONPATH}"

if [ "${1:-}" = receive ]; then
    exec "$python" -m gpu.machine receive "$here" "$store"
fi

seconds=570
if [ "${1:-}" = --seconds ]; then
    seconds=${2:?--seconds needs a number}
    shift 2
fi
OUT=${OUT:-$PWD/gpu-results}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export OUT

check=
finish() {
    trap - EXIT
    "$python" -m gpu.machine times "$store" "$OUT" || echo "the time table could not be written"
}
trap finish EXIT
end() {
    if [ -n "$check" ]; then
        kill "$check" 2> /dev/null || true
        wait "$check" || true  # it writes what it has
    fi
    exit 143
}
trap end TERM INT

"$python" -m gpu.machine receive "$here" "$store" || echo "going on without the damaged slices"
"$python" -m gpu.machine install "$store" || echo "going on with what is installed"
"$python" -m gpu.machine times "$store" "$OUT" > /dev/null || echo "the time table could not be written"

# The bundle's packages come before those of the machine. A virtual environment would not do: where the machine's Python
# is in one itself, a new one sees none of its packages.
export PYTHONPATH="$store/site:$PYTHONPATH"
cd "$project"
"$python" -m gpu.check --seconds "$((seconds - SECONDS))" "$@" &
check=$!
wait "$check"
