"""Simulates and synthesizes the arithmetic of normalisations: an inverse root, and the lane that multiplies by it.

    python benchmarks/rtl_norm.py

Needs `verilator` with make and a C++ compiler, and `yosys` (7-series).  Random spreads, powers of 4 and squares with
their neighbours go through `benchmarks/rtl/inverse_root.sv`, values through `norm_lane.sv`; every result is compared
with the integer runtime's (`qat.export.kernels`).  Prints how many differ, the cycles of the longest root, and what
each takes: `ROOT_CYCLES`, `ROOT_LUTS` and `NORM_LANE_LUTS` of `hwmodel.compute`.
"""

from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from math import isqrt
from pathlib import Path

import numpy as np

from qat.export.kernels import inverse_root
from qat.integer import NORM_FRACTION_BITS, NORM_INVERSE_BITS

RTL = Path(__file__).parent / "rtl"
RESULT = re.compile(r"^RESULT vectors (\d+) errors (\d+) longest (\d+)$", re.MULTILINE)
CELLS = {
    "lut": re.compile(r"^\s+LUT[1-6]\s+(\d+)\s*$", re.MULTILINE),
    "dsp": re.compile(r"^\s+DSP48E1\s+(\d+)\s*$", re.MULTILINE),
}
FIELDS = (62, 31, 17, 48, 5, 17, 32)
"""Bits of a vector: spread, count, code, total; exponent, inverse and value that are expected."""


def draw(pick: random.Random) -> list[int]:
    """A spread, and a value that lies at most 100 deviations from its mean."""
    spread = pick.getrandbits(pick.randint(0, 62))
    if pick.random() < 0.3:
        near = 4 ** pick.randint(0, 30) if pick.random() < 0.5 else pick.getrandbits(pick.randint(1, 31)) ** 2
        spread = min(max(near + pick.randint(-1, 1), 0), 2**62 - 1)
    farthest = min(100 * isqrt(spread), 2**32 - 1)
    count, code = pick.getrandbits(pick.randint(1, 30)), pick.randint(-(2**15), 2**15 - 1)
    return [spread, count, code, count * code - pick.randint(-farthest, farthest)]


def vectors_of(count: int, seed: int) -> str:
    """Lines for $readmemh: what goes in, and what the integer runtime makes of it."""
    pick = random.Random(seed)
    rows = [draw(pick) for _ in range(count)]
    exponents, inverses = inverse_root(np.array([row[0] for row in rows], dtype=np.int64))
    lines = []
    for (spread, number, code, total), e, inverse in zip(rows, exponents.tolist(), inverses.tolist(), strict=True):
        shift = e + NORM_INVERSE_BITS - NORM_FRACTION_BITS
        value = ((number * code - total) * inverse + (1 << (shift - 1))) >> shift
        word = 0
        for field, width in zip((spread, number, code, total, e, inverse, value), FIELDS, strict=True):
            word = word << width | field & (1 << width) - 1
        lines.append(f"{word:x}")
    return "\n".join(lines) + "\n"


def simulate(count: int, seed: int) -> tuple[int, int]:
    """Wrong results, and cycles of the longest root."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vectors.mem"
        file.write_text(vectors_of(count, seed), encoding="ascii")
        sources = [RTL / name for name in ("inverse_root.sv", "norm_lane.sv", "norm_check.sv", "clock.cpp")]
        flags = ["--cc", "--exe", "--build", "-Wno-fatal", "-Wno-lint", "--top-module", "top", f"-DVECTORS={count}"]
        command = [
            "verilator",
            *flags,
            f'-DFILE="{file}"',
            "--Mdir",
            folder,
            *(str(path.resolve()) for path in sources),
        ]
        built = subprocess.run(command, check=False, capture_output=True, text=True)
        if built.returncode:
            raise SystemExit(f"verilator refused the sources:\n{built.stderr}")
        done = subprocess.run([str(Path(folder) / "Vtop")], check=True, capture_output=True, text=True)
    vectors, errors, longest = map(int, RESULT.findall(done.stdout)[0])
    if vectors != count:
        raise SystemExit(f"{vectors} of {count} vectors were compared")
    return errors, longest


def synthesize(module: str, parameters: str = "") -> dict[str, int]:
    """LUTs and DSP slices on a 7-series device."""
    chosen = f"chparam {parameters} {module}; " if parameters else ""
    script = (
        f"read_verilog -sv {RTL / module}.sv; {chosen}synth_xilinx -family xc7 -top {module} -flatten -noiopad; stat"
    )
    done = subprocess.run(["yosys", "-p", script], check=True, capture_output=True, text=True)
    report = done.stdout[done.stdout.rindex("Number of cells") :]
    return {name: sum(map(int, pattern.findall(report))) for name, pattern in CELLS.items()}


def main() -> int:
    """Command line; 1 if a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for tool in (["verilator", "--version"], ["yosys", "-V"], ["git", "rev-parse", "--short", "HEAD"]):
        print(subprocess.run(tool, check=False, capture_output=True, text=True).stdout.strip())
    print(datetime.now(UTC).date())
    errors, longest = simulate(args.count, args.seed)
    print(f"{args.count - errors} of {args.count} exact; longest root {longest} cycles")
    print("inverse_root", synthesize("inverse_root"))
    for code, count in ((8, 8), (8, 12), (8, 17)):
        print(
            f"norm_lane, codes of {code} bits, {count} bits of a count:",
            synthesize("norm_lane", f"-set CODE {code} -set COUNT {count}"),
        )
    return int(errors > 0)


if __name__ == "__main__":
    sys.exit(main())
