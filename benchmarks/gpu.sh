#!/usr/bin/env bash
# Everything that is to be measured on one H100 or H200, and what it means:
#
#   benchmarks/gpu.sh [--dry] [--part PART] [OUT]
#
# PART is kernels, steps, attacks or tiles (default: one after another), each of at most 9 minutes;
# OUT is a folder (default: runs/gpu) for JSON and table.md. What a part had no time for, the same
# command goes on with. --dry does the same at toy sizes on a CPU. PYTHON names the Python to use;
# where it lacks something, a virtual environment is made in .venv-gpu. Exit status: 0 done, 1 a
# part failed, 2 bad input, 75 the time was up: the same command goes on.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
seconds=540 parts=() all=(kernels steps attacks tiles) dry=() out=

refuse() {
    echo "gpu.sh: $*" >&2
    exit 2
}

while (($#)); do
    case $1 in
        --dry) dry=(--dry) ;;
        --part)
            [[ " ${all[*]} " == *" ${2-} "* && -n ${2-} ]] ||
                refuse "--part ${2-}: choose one of ${all[*]}"
            parts+=("$2")
            shift
            ;;
        -*) refuse "unknown option $1: use --dry, --part PART or a folder" ;;
        *)
            [[ -z $out ]] || refuse "two folders, $out and $1: give one"
            out=$1
            ;;
    esac
    shift
done
((${#parts[@]})) || parts=("${all[@]}")
out=${out:-$root/runs/gpu}

# Prints what a Python lacks.
lacks() {
    "$1" - <<'EOF'
from importlib.util import find_spec

needed = "jax flax optax orbax etils jaxtyping array_record rich torch transformers"
print(*[name for name in needed.split() if find_spec(name) is None])
EOF
}

python=${PYTHON:-python3}
command -v "$python" >/dev/null || refuse "no Python at $python: set PYTHON"
if [[ -n $(lacks "$python") ]]; then
    [[ -z ${PYTHON-} ]] || refuse "$python lacks $(lacks "$python"): install them, or unset PYTHON"
    venv=$root/.venv-gpu
    if [[ ! -e $venv/gpu.done ]]; then
        "$python" -m venv "$venv" &&
            "$venv/bin/python" -m pip install --quiet --constraint "$root/constraints.txt" \
                --editable "$root[gpu]" 'torch>=2.9,<2.14' 'transformers>=5.23' ||
            refuse "$python lacks $(lacks "$python"), and they cannot be installed in $venv"
        "$venv/bin/python" -m pip install --quiet liger-kernel ||
            echo "gpu.sh: liger-kernel cannot be installed: it is left out" >&2
        touch "$venv/gpu.done"
    fi
    python=$venv/bin/python
fi

gpu() {
    "$python" "$root/benchmarks/gpu.py" "$@" "${dry[@]}"
}

gpu about || exit 2
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total \
    --format=csv,noheader
status=0
for part in "${parts[@]}"; do
    timeout --foreground --kill-after=10 "$seconds" "$python" "$root/benchmarks/gpu.py" "$part" "$out" "${dry[@]}"
    case $? in
        0) ;;
        2) exit 2 ;;
        124 | 137)
            echo "gpu.sh: $part: the time is up; the same command goes on" >&2
            status=75
            ;;
        *)
            echo "gpu.sh: $part failed" >&2
            ((status)) || status=1
            ;;
    esac
done
gpu table "$out" || ((status)) || status=2
exit "$status"
