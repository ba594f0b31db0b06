#!/bin/sh
# Exports on other processors: 0 differing outputs of generated C on ARM (with and without NEON) and big-endian s390x, of
# ONNX Runtime on x86 without AVX-512 and VNNI (all under qemu), and of Verilog in Icarus Verilog.
#
# Writes C headers with test programs (random networks of every operation, LeNet-5 of several widths), compiles them for
# each target, runs them under qemu-user, and fails when any output differs. Not part of CI. Needs on the PATH:
#   qemu-aarch64-static, qemu-arm-static, qemu-s390x-static    (Debian: qemu-user-static)
#   one compiler for each target: aarch64-linux-gnu-gcc, arm-linux-gnueabihf-gcc, s390x-linux-gnu-gcc
#   (Debian: gcc-aarch64-linux-gnu, ...); or zig for all of them: ZIG="python -m ziglang" (pip install ziglang)
#
# ONNX Runtime needs qemu-x86_64-static and a PYTHON with probq[onnx]; Verilog needs iverilog and a PYTHON with
# probq[verilog]. What is missing is skipped, and said.
#
#   sh benchmarks/cross_targets.sh [number of random networks]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
PYTHONPATH="$here/..:$here:$here/../tests" "${PYTHON:-python3}" - "$folder" "${1:-60}" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
from integer_lenet import integer_lenet
from random_models import inputs, random_model

from probq.export import c

folder, count = Path(sys.argv[1]), int(sys.argv[2])
models = {f"lenet{w}{x}": integer_lenet((8, w, w, 8), (8, x, x, 8), np.random.default_rng(0))
          for w, x in ((8, 8), (4, 4), (2, 2), (1, 2), (1, 1))}
for seed in range(count):
    rng = np.random.default_rng(seed)
    models[f"random{seed}"] = random_model(lambda low, high: int(rng.integers(low, high + 1)))
for name, model in models.items():
    c.write(model, folder / f"{name}.h")
    c.write_test(model, folder / f"{name}_test.c", inputs(model, 8))
PYTHON

check() { # name, qemu, compiler and its flags
    name=$1 qemu=$2
    shift 2
    if ! command -v "$qemu" >/dev/null; then
        echo "$name: skipped, there is no $qemu"
        return
    fi
    if ! command -v "$1" >/dev/null; then
        echo "$name: skipped, there is no $1"
        return
    fi
    programs=0
    for source in "$folder"/*_test.c; do
        "$@" -std=c99 -Wall -Wextra -Wconversion -static "$source" -o "$folder/program"
        if ! "$qemu" "$folder/program" >"$folder/said"; then
            echo "$name: $(basename "$source"): $(cat "$folder/said")"
            exit 1
        fi
        programs=$((programs + 1))
    done
    echo "$name: $programs programs, 0 outputs differ"
}

zig() { # zig's target, flags
    target=$1
    shift
    echo "$ZIG cc -target $target $*"
}

if [ -n "${ZIG:-}" ]; then
    arm64=$(zig aarch64-linux-musl) arm=$(zig arm-linux-musleabihf) s390x=$(zig s390x-linux-musl)
    thumb=$(zig thumb-linux-musleabi -mcpu=cortex_m4)
else
    arm64=aarch64-linux-gnu-gcc arm="arm-linux-gnueabihf-gcc -mfpu=neon" s390x=s390x-linux-gnu-gcc
    thumb="arm-linux-gnueabihf-gcc -mthumb"
fi
# shellcheck disable=SC2086  # words are flags
check "ARM 64 bits, NEON, -O3" qemu-aarch64-static $arm64 -O3
# shellcheck disable=SC2086
check "ARM 32 bits, -O2" qemu-arm-static $arm -O2
# shellcheck disable=SC2086
check "ARM Thumb, -Os" qemu-arm-static $thumb -Os
# shellcheck disable=SC2086
check "s390x, big-endian, -O2" qemu-s390x-static $s390x -O2

# ONNX Runtime: u8 x s8 products are summed in 16 bits where there is no VNNI, and would saturate.
onnx() { # name, emulator and its flags
    name=$1
    shift
    if [ $# -gt 0 ] && ! command -v "$1" >/dev/null; then
        echo "$name: skipped, there is no $1"
        return
    fi
    "$@" "$python" - "$folder" "$name" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np

from probq.export import onnx

compared = 0
for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    given = np.load(path.with_suffix(".npz"))
    compared += len(given["x"])
    for optimize in (False, True):
        differing = int((onnx.run(path, given["x"], optimize) != given["y"]).sum())
        if differing:
            raise SystemExit(f"{sys.argv[2]}: {path.name}: {differing} integers differ")
print(f"{sys.argv[2]}: {compared} inputs (each with and without optimizations), 0 outputs differ")
PYTHON
}

python=$(command -v "${PYTHON:-python3}")
export PYTHONPATH="$here/..:$here:$here/../tests:$here/../tests/export/onnx" OMP_NUM_THREADS=1
if "$python" -c "import onnx, onnxruntime" 2>/dev/null; then
    "$python" - "$folder" "${1:-60}" <<'PYTHON'
import sys
from itertools import product
from pathlib import Path

import numpy as np
from integer_lenet import integer_lenet
from random_models import inputs, random_model
from wide_models import wide

from probq.utils.errors import ProbqError
from probq.export import onnx

folder, count = Path(sys.argv[1]), int(sys.argv[2])
models = {f"lenet{w}{x}": integer_lenet((8, w, w, 8), (8, x, x, 8), np.random.default_rng(0))
          for w, x in ((8, 8), (4, 4), (1, 1))}
for seed in range(count):
    rng = np.random.default_rng(seed)
    models[f"random{seed}"] = random_model(lambda low, high: int(rng.integers(low, high + 1)))
    models[f"wide{seed}"] = wide(seed)
for (name, model), packed in product(models.items(), (False, True)):
    path = folder / f"{name}{'-packed' * packed}.onnx"
    try:
        onnx.write(model, path, packed)
    except ProbqError as error:
        print(f"ONNX: {name} is refused: {error}")
        continue
    x = inputs(model, 8)
    np.savez(path.with_suffix(".npz"), x=x, y=model.run(x))
PYTHON
    onnx "ONNX Runtime, this processor"
    onnx "ONNX Runtime, x86-64 without AVX-512 and VNNI" qemu-x86_64-static -cpu max,avx512f=off
else
    echo "ONNX Runtime: skipped, there is no onnx or onnxruntime"
fi

if "$python" -c "import da4ml" 2>/dev/null && command -v iverilog >/dev/null; then
    "$python" - "$folder" "${1:-60}" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
from random_models import inputs, random_model

from probq.utils.errors import ProbqError
from probq.export import verilog

written = refused = compared = 0
for seed in range(2 * int(sys.argv[2])):
    rng = np.random.default_rng(seed)
    model = random_model(lambda low, high: int(rng.integers(low, high + 1)), 3, dense=True)
    try:
        verilog.write(model, Path(sys.argv[1]) / f"verilog{seed}")
    except ProbqError:
        refused += 1
        continue
    x = inputs(model, 8)
    differing = int((verilog.run(Path(sys.argv[1]) / f"verilog{seed}", x) != model.run(x)).sum())
    if differing:
        raise SystemExit(f"Verilog: random network {seed}: {differing} integers differ")
    written, compared = written + 1, compared + len(x)
print(f"Verilog: {written} networks ({refused} refused by name), {compared} inputs, 0 outputs differ")
PYTHON
else
    echo "Verilog: skipped, there is no da4ml or iverilog"
fi
