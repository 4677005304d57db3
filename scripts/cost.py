"""Says what a network costs on boards, layer by layer, and what it is limited by. Trains nothing.

    python scripts/cost.py network=resnet50 board=zcu102 baselines=[4] out=cost
    python scripts/cost.py network=yolov2_tiny_voc board=all baselines=[1,4]
    python scripts/cost.py network=torchvision.models:resnet18 network.input_shape=[3,224,224] network.num_classes=1000
    python scripts/cost.py network=model.onnx board=vc707,zcu104 precision=config.json
    python scripts/cost.py network=yolov2_tiny_voc board=pynq_z2 baselines=[4] min_fps=5

`network=` is a layer table of `hwmodel`, a choice of `conf/network`, an import path, or an ONNX file; `board=` one or
several boards or YAML files, or `all` (`all,mine.yaml` too); `precision=` a configuration that a search has written,
otherwise `baselines` lists uniform weight bits; `out=` is the folder of JSON, CSV and plots. Schedules have the fewest
off-chip bits, however slow; `min_fps=` asks for the fewest among those that reach so many frames per second.
"""

from __future__ import annotations

import sys

from qat.cli import run_estimate


def main() -> int:
    if "--help" in sys.argv:
        return run_estimate(lambda config: None, __doc__)
    from qat.costing import cost, split_arguments  # here, so that --help does not wait for plots

    arguments, sys.argv[1:] = split_arguments(sys.argv[1:])
    return run_estimate(lambda config: cost(config, arguments), __doc__)


if __name__ == "__main__":
    sys.exit(main())
