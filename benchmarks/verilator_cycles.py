"""Simulates streaming convolutions with Verilator: the golden data of `tests/hwmodel/test_cycles.py`.

    python benchmarks/verilator_cycles.py --out tests/hwmodel/data/verilator_cycles.json

Needs `verilator` (the distribution's; 5.006 wrote the data that is kept), make and a C++ compiler.  Shapes and foldings
are drawn at random; each becomes an engine (`benchmarks/rtl/conv_stream.sv`) whose every output is compared with a
convolution written as plain loops.  Prints what the formulas of `hwmodel.cycles` say beside what was counted.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from hwmodel import INPUT, LayerSpec, Op
from hwmodel.compute import folds
from hwmodel.cycles import pixel_order_cycles, pixel_order_latency
from hwmodel.folding import divisors, pipelined_foldings

RTL = Path(__file__).parent / "rtl"
RESULT = re.compile(r"^RESULT (\d+) interval (\d+) latency (\d+) errors (\d+)$", re.MULTILINE)
LARGEST_WINDOW = 100
"""Most activations of a window: what a simulation of dozens of engines at once can hold."""


def draw(pick: random.Random) -> dict[str, int]:
    """Parameters of an engine: kernel 1..5, stride 1..2, padding 0..K-1, any folding that leaves nothing idle."""
    while True:
        k, s = pick.randint(1, 5), pick.choice((1, 2))
        shape = {"C": pick.choice((1, 2, 3, 4, 6, 8)), "M": pick.choice((1, 2, 3, 4, 6, 8, 12)), "K": k, "S": s}
        shape |= {"P": pick.randint(0, k - 1), "H": pick.randint(4, 14), "W": pick.randint(4, 14)}
        if min(shape["H"], shape["W"]) + 2 * shape["P"] < k or k * k * shape["C"] > LARGEST_WINDOW:
            continue
        pe, simd = pick.choice(pipelined_foldings(layer_of(shape)))
        return {**shape, "PE": pe, "SIMD": simd, "IC": pick.choice(divisors(shape["C"]))}


def layer_of(shape: dict[str, int]) -> LayerSpec:
    """The layer that an engine computes."""
    c, m, k, s, p = (shape[name] for name in "CMKSP")
    rows, columns = ((shape[axis] + 2 * p - k) // s + 1 for axis in "HW")
    pairs = {"kernel_size": (k, k), "stride": (s, s), "padding": (p, p)}
    return LayerSpec("conv", Op.CONV, (INPUT,), c, shape["H"], shape["W"], m, rows, columns, **pairs)


def predict(shape: dict[str, int]) -> tuple[int, int]:
    """Frame interval and latency of an engine by the formulas."""
    layer, ingest_cycles = layer_of(shape), shape["C"] // shape["IC"]
    pixel_folds = folds(layer, shape["PE"], shape["SIMD"])
    interval = pixel_order_cycles(layer, pixel_folds, ingest_cycles)
    return interval, pixel_order_latency(layer, pixel_folds, shape["SIMD"], ingest_cycles)


def simulate(shapes: list[dict[str, int]]) -> list[tuple[int, int, int]]:
    """Interval, latency and wrong outputs of each engine, all in one simulation."""
    instances = [
        f"  conv_check #(.ID({i}), {', '.join(f'.{name}({value})' for name, value in shape.items())}) "
        f"check{i} (.clk(clk), .done(dones[{i}]));"
        for i, shape in enumerate(shapes)
    ]
    top = "\n".join(
        [
            "module top(input logic clk, output logic done);",
            f"  logic [{len(shapes) - 1}:0] dones;",
            "  assign done = &dones;",
            *instances,
            "endmodule",
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "top.sv"
        source.write_text(top, encoding="ascii")
        sources = [RTL / "conv_stream.sv", RTL / "conv_check.sv", source, RTL / "clock.cpp"]
        flags = ["--cc", "--exe", "--build", "-Wno-fatal", "-Wno-lint", "-O1", "--top-module", "top"]
        command = ["verilator", *flags, "--Mdir", folder, *(str(path.resolve()) for path in sources)]
        built = subprocess.run(command, check=False, capture_output=True, text=True)
        if built.returncode:
            raise SystemExit(f"verilator refused the sources:\n{built.stderr}")
        done = subprocess.run([str(Path(folder) / "Vtop")], check=True, capture_output=True, text=True)
    found = {int(row[0]): tuple(map(int, row[1:])) for row in RESULT.findall(done.stdout)}
    return [found[i] for i in range(len(shapes))]  # type: ignore[misc]


def main() -> int:
    """Command line; 1 if a formula or an output is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--count", type=int, default=54)
    parser.add_argument("--seed", type=int, default=3)
    args = parser.parse_args()
    pick = random.Random(args.seed)
    shapes = [draw(pick) for _ in range(args.count)]
    rows, wrong = [], 0
    for shape, (interval, latency, errors) in zip(shapes, simulate(shapes), strict=True):
        is_exact = predict(shape) == (interval, latency) and errors == 0
        wrong += not is_exact
        rows.append({**shape, "interval_cycles": interval, "latency_cycles": latency})
        print(shape, "counted", interval, latency, "formula", *predict(shape), "wrong outputs", errors, flush=True)
    print(f"{len(rows) - wrong} of {len(rows)} exact")
    if args.out and not wrong:
        version = subprocess.run(["verilator", "--version"], check=True, capture_output=True, text=True).stdout.strip()
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        head = json.dumps({"tool": version, "seed": args.seed})
        args.out.write_text(f'{{"source": {head},\n "rows": [\n{lines}\n]}}\n', encoding="utf-8")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
