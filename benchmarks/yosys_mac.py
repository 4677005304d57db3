"""Synthesizes multiply-accumulate trees with Yosys: the golden data of `tests/hwmodel/test_compute.py`.

    python benchmarks/yosys_mac.py --out tests/hwmodel/data/yosys_mac.json

Needs `yosys`.  Trees are pipelined: products are registered, and every level of the adder tree is.  With 1-bit
weights a product is an AND gate: sum(a) - 2 * sum(w and a), with sum(a) computed once for all output channels and
not counted here.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path

LUTS = re.compile(r"^\s+LUT[1-6]\s+(\d+)\s*$", re.MULTILINE)
DSPS = re.compile(r"^\s+DSP48E\d\s+(\d+)\s*$", re.MULTILINE)


def tree(products: int, weight_bit_width: int, act_bit_width: int) -> str:
    """Verilog of a pipelined tree of `products` products (a power of two)."""
    w, a, n = weight_bit_width, act_bit_width, products
    width = a if w == 1 else w + a
    lines = [f"module mac(input clk, input [{n * w - 1}:0] weights, input [{n * a - 1}:0] acts, output [63:0] total);"]
    for i in range(n):
        act, weight = f"acts[{i * a + a - 1}:{i * a}]", f"weights[{i * w + w - 1}:{i * w}]"
        product = f"{{{a}{{{weight}}}}} & {act}" if w == 1 else f"$signed({weight}) * $signed({{1'b0, {act}}})"
        kind = "" if w == 1 else "signed "
        lines.append(f"  reg {kind}[{width - 1}:0] s0_{i}; always @(posedge clk) s0_{i} <= {product};")
    level, count = 0, n
    while count > 1:
        level, count, width = level + 1, count // 2, width + 1
        kind = "" if w == 1 else "signed "
        for i in range(count):
            operands = f"s{level - 1}_{2 * i} + s{level - 1}_{2 * i + 1}"
            lines.append(f"  reg {kind}[{width - 1}:0] s{level}_{i}; always @(posedge clk) s{level}_{i} <= {operands};")
    lines += [f"  assign total = s{level}_0;", "endmodule"]
    return "\n".join(lines)


def synthesize(products: int, weight_bit_width: int, act_bit_width: int, *, dsp: bool) -> dict[str, int]:
    """LUTs and DSP slices of a tree on a 7-series device."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "mac.v"
        source.write_text(tree(products, weight_bit_width, act_bit_width), encoding="ascii")
        flags = "" if dsp else "-nodsp"
        script = f"read_verilog {source}; synth_xilinx -family xc7 -top mac -flatten {flags} -noiopad; stat"
        done = subprocess.run(["yosys", "-p", script], check=True, capture_output=True, text=True)
    report = done.stdout[done.stdout.rindex("Number of cells") :]
    return {"lut": sum(map(int, LUTS.findall(report))), "dsp": sum(map(int, DSPS.findall(report)))}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--products", type=int, default=16)
    args = parser.parse_args()
    version = subprocess.run(["yosys", "-V"], check=True, capture_output=True, text=True).stdout.strip()
    rows = []
    for w in (1, 2, 3, 4, 6, 8):
        for a in (2, 4, 6, 8):
            for dsp in (False, True) if (w, a) in ((4, 4), (8, 8)) else (False,):
                row = {"products": args.products, "weight_bit_width": w, "act_bit_width": a, "with_dsp": dsp}
                rows.append({**row, **synthesize(args.products, w, a, dsp=dsp)})
                print(rows[-1], flush=True)
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    args.out.write_text(f'{{"source": {json.dumps({"tool": version})},\n "rows": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
