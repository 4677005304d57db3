"""What a quantized, pruned CNN costs on an FPGA.  numpy only; knows neither torch nor `qat`."""

from hwmodel.arrays import ConfigArrays
from hwmodel.board import Board, board_names, load_board, load_boards
from hwmodel.compute import Multiplier
from hwmodel.dataflow import DataFlow, HostInterface, LayerSchedule, Schedule, WeightPlace
from hwmodel.errors import BoardError, BudgetError, HwModelError, SpecError
from hwmodel.estimation import estimate, estimate_arrays, estimate_many
from hwmodel.memory import MemoryUse, map_memory
from hwmodel.network import INPUT, LayerSpec, NetworkSpec, Op
from hwmodel.networks import load_network, network_names
from hwmodel.precision import Granularity, LayerConfig, NetworkConfig, WeightFormat, uniform
from hwmodel.report import CostReport, LayerCost, MemoryCost
from hwmodel.scheduler import schedule
from hwmodel.storage import IndexCoding, WeightStorage, weight_storage
from hwmodel.table import CostTable
from hwmodel.tables import CostTables

__all__ = [
    "INPUT",
    "Board",
    "BoardError",
    "BudgetError",
    "ConfigArrays",
    "CostReport",
    "CostTable",
    "CostTables",
    "DataFlow",
    "Granularity",
    "HostInterface",
    "HwModelError",
    "IndexCoding",
    "LayerConfig",
    "LayerCost",
    "LayerSchedule",
    "LayerSpec",
    "MemoryCost",
    "MemoryUse",
    "Multiplier",
    "NetworkConfig",
    "NetworkSpec",
    "Op",
    "Schedule",
    "SpecError",
    "WeightFormat",
    "WeightPlace",
    "WeightStorage",
    "board_names",
    "estimate",
    "estimate_arrays",
    "estimate_many",
    "load_board",
    "load_boards",
    "load_network",
    "map_memory",
    "network_names",
    "schedule",
    "uniform",
    "weight_storage",
]
