"""What a quantized, pruned CNN costs on an FPGA.  numpy only; knows neither torch nor `qat`."""

from hwmodel.errors import BoardError, BudgetError, HwModelError, SpecError
from hwmodel.network import INPUT, LayerSpec, NetworkSpec, Op
from hwmodel.precision import Granularity, LayerConfig, NetworkConfig, WeightFormat, uniform

__all__ = [
    "INPUT",
    "BoardError",
    "BudgetError",
    "Granularity",
    "HwModelError",
    "LayerConfig",
    "LayerSpec",
    "NetworkConfig",
    "NetworkSpec",
    "Op",
    "SpecError",
    "WeightFormat",
    "uniform",
]
