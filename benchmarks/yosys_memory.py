"""Maps memories with Yosys and writes what it took: the golden data of `tests/hwmodel/test_memory.py`.

    python benchmarks/yosys_memory.py --out tests/hwmodel/data/yosys_memory_xc7.json

Needs `yosys` (the distribution's; 0.23 wrote the data that is kept).  About a second per memory.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import tempfile
from pathlib import Path

RAM = """
module memory(input clk, input we, input [{a}:0] wa, input [{w}:0] wd, input [{a}:0] ra, output reg [{w}:0] rd);
  reg [{w}:0] mem [0:{d}];
  always @(posedge clk) begin
    if (we) mem[wa] <= wd;
    rd <= mem[ra];
  end
endmodule
"""

ROM = """
module memory(input clk, input [{a}:0] ra, output reg [{w}:0] rd);
  reg [{w}:0] mem [0:{d}];
  initial $readmemh("{data}", mem);
  always @(posedge clk) rd <= mem[ra];
endmodule
"""

CELLS = re.compile(r"^\s+(RAMB18E\d|RAMB36E\d|URAM288\w*|RAM\d+\w*)\s+(\d+)\s*$", re.MULTILINE)


def yosys_version() -> str:
    """Version line of the installed Yosys."""
    return subprocess.run(["yosys", "-V"], check=True, capture_output=True, text=True).stdout.strip()


def map_with_yosys(depth: int, width: int, family: str, *, rom: bool = False) -> dict[str, int]:
    """Memory cells that Yosys takes for a memory with one write and one registered read port (ROM: read only)."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.hex"
        if rom:
            digits = random.Random(depth * 1000 + width)
            data.write_text("\n".join(f"{digits.getrandbits(width):x}" for _ in range(depth)), encoding="ascii")
        source = Path(folder) / "memory.v"
        address = max(0, (depth - 1).bit_length() - 1)
        text = (ROM if rom else RAM).format(a=address, w=width - 1, d=depth - 1, data=data)
        source.write_text(text, encoding="ascii")
        script = f"read_verilog {source}; synth_xilinx -family {family} -top memory -run begin:map_ffram; stat"
        done = subprocess.run(["yosys", "-p", script], check=True, capture_output=True, text=True)
    return {name: int(count) for name, count in CELLS.findall(done.stdout)}


def random_shapes(count: int, seed: int) -> list[tuple[int, int]]:
    """Depths 16..16384 and widths 1..256, both spread evenly over their logarithms."""
    pick = random.Random(seed)
    return [(round(2 ** pick.uniform(4, 14)), round(2 ** pick.uniform(0, 8))) for _ in range(count)]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--family", choices=["xc7", "xcup"], default="xc7")
    parser.add_argument("--rom", action="store_true")
    args = parser.parse_args()
    rows = []
    for depth, width in random_shapes(args.count, args.seed):
        cells = map_with_yosys(depth, width, args.family, rom=args.rom)
        rows.append({"depth": depth, "width": width, "cells": cells})
        print(len(rows), depth, width, cells, flush=True)
    head = {"tool": yosys_version(), "family": args.family, "rom": args.rom, "seed": args.seed}
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    args.out.write_text(f'{{"source": {json.dumps(head)},\n "rows": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
