"""What the paper's compression would cost in hardware, at full size: no training, no accuracy.

    python benchmarks/detector_cost.py

A sign for every weight plus a share of 8-bit weights, the same share in all layers but the first and the last, which
have 8 bits; the share is the largest that reaches the compression.  Activations of 4 bits, 8 at both ends.
"""

from __future__ import annotations

from dataclasses import replace

import hwmodel
from hwmodel import LayerConfig, NetworkConfig, NetworkSpec, WeightFormat

CASES = (("sim_yolo_v2_fpga", "vc707"), ("yolov3_tiny", "zcu102"))
COMPRESSIONS = (28.93, 22.66)
"""Of the paper's abstract."""

SHARES = tuple(step / 2000 for step in range(1, 121))


def with_share(network: NetworkSpec, share: float) -> NetworkConfig:
    """Signs, and a share of 8-bit weights, between the first and the last layer."""
    uniform = hwmodel.uniform(network, 1, 4, end_bit_width=8)
    body = LayerConfig(1, 4, 1 - share, WeightFormat.BINARY_PLUS_SPARSE)
    layers = tuple(
        (name, layer if layer.weight_bit_width == 8 else replace(body, act_bit_width=layer.act_bit_width))
        for name, layer in uniform.layers
    )
    return replace(uniform, layers=layers)


def main() -> None:
    """Prints one line per network and compression."""
    for name, board_name in CASES:
        network, board = hwmodel.load_network(name), hwmodel.load_board(board_name)
        for compression in COMPRESSIONS:
            low, high = 0, len(SHARES) - 1
            while low < high:
                middle = (low + high + 1) // 2
                config = with_share(network, SHARES[middle])
                stored = sum(hwmodel.weight_storage(layer, config[layer.name]).total_bits for layer in network.weighted)
                low, high = (middle, high) if 32 * network.total_weights / stored >= compression else (low, middle - 1)
            report = hwmodel.estimate(network, with_share(network, SHARES[low]), board)
            print(
                f"{name} on {board_name}: {SHARES[low]:.2%} of weights in 8 bits, {report.compression:.2f}x, "
                f"{report.bits_per_weight:.3f} bits per weight, RAMB18 {report.bram18} of {board.bram18}, off chip "
                f"{report.offchip_bits / 8192:.0f} KiB (layer by layer {report.baseline_offchip_bits / 8192:.0f}), "
                f"{report.fps:.0f} frames/s"
            )


if __name__ == "__main__":
    main()
