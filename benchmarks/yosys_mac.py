"""Synthesizes multiply-accumulate trees with Yosys: the golden data of `tests/hwmodel/test_compute.py`.

    python benchmarks/yosys_mac.py --out tests/hwmodel/data/yosys_mac.json

Needs `yosys`.  Trees are pipelined: products are registered, and every level of the adder tree is.  With 1-bit
weights a product is an AND gate: sum(a) - 2 * sum(w and a), with sum(a) computed once for all output channels and
not counted here.  With `packed` two weights share an activation and a DSP slice: (w1 * 2**16 + w0) * a, whose upper
half gets back the borrow of the lower one.
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


def packed_tree(products: int) -> str:
    """Verilog of two pipelined trees of 8-bit products that share activations and DSP slices."""
    n = products
    lines = [f"module mac(input clk, input [{16 * n - 1}:0] weights, input [{8 * n - 1}:0] acts, output [63:0] total);"]
    for i in range(n):
        low, high = f"$signed(weights[{16 * i + 7}:{16 * i}])", f"$signed(weights[{16 * i + 15}:{16 * i + 8}])"
        lines += [
            f"  wire signed [24:0] pair_{i} = ({high} <<< 16) + {low};",
            f"  reg signed [33:0] both_{i};",
            f"  always @(posedge clk) both_{i} <= pair_{i} * $signed({{1'b0, acts[{8 * i + 7}:{8 * i}]}});",
            f"  wire signed [15:0] s0_{i}_0 = both_{i}[15:0];",
            f"  wire signed [15:0] s0_{i}_1 = both_{i}[31:16] + both_{i}[15];",
        ]
    level, count, width = 0, n, 16
    while count > 1:
        level, count, width = level + 1, count // 2, width + 1
        for i in range(count):
            for half in (0, 1):
                operands = f"s{level - 1}_{2 * i}_{half} + s{level - 1}_{2 * i + 1}_{half}"
                lines.append(f"  reg signed [{width - 1}:0] s{level}_{i}_{half};")
                lines.append(f"  always @(posedge clk) s{level}_{i}_{half} <= {operands};")
    lines += [f"  assign total = {{s{level}_0_1, s{level}_0_0}};", "endmodule"]
    return "\n".join(lines)


def synthesize(verilog: str, *, dsp: bool) -> dict[str, int]:
    """LUTs and DSP slices on a 7-series device."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "mac.v"
        source.write_text(verilog, encoding="ascii")
        flags = "" if dsp else "-nodsp"
        script = f"read_verilog {source}; synth_xilinx -family xc7 -top mac -flatten {flags} -noiopad; stat"
        done = subprocess.run(["yosys", "-p", script], check=True, capture_output=True, text=True)
    report = done.stdout[done.stdout.rindex("Number of cells") :]
    return {"lut": sum(map(int, LUTS.findall(report))), "dsp": sum(map(int, DSPS.findall(report)))}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--products", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--weight-bit-widths", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8])
    parser.add_argument("--act-bit-widths", type=int, nargs="+", default=[4, 8])
    args = parser.parse_args()
    version = subprocess.run(["yosys", "-V"], check=True, capture_output=True, text=True).stdout.strip()
    rows: list[dict[str, int | str]] = []

    def add(verilog: str, products: int, w: int, a: int, multiplier: str) -> None:
        use = synthesize(verilog, dsp=multiplier != "lut")
        rows.append({"products": products, "weight_bit_width": w, "act_bit_width": a, "multiplier": multiplier, **use})
        print(rows[-1], flush=True)

    for products in args.products:
        for w in args.weight_bit_widths:
            for a in args.act_bit_widths:
                add(tree(products, w, a), products, w, a, "lut")
                if w == a == 8:  # narrower products it builds from LUTs in any case
                    add(tree(products, w, a), products, w, a, "dsp")
        if 8 in args.weight_bit_widths and 8 in args.act_bit_widths:
            add(packed_tree(products), products, 8, 8, "dsp_packed")
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    args.out.write_text(f'{{"source": {json.dumps({"tool": version})},\n "rows": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
