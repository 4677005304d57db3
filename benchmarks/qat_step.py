"""Time and memory of a training step: float, this package in each format, Brevitas, torchao's PT2E, PQuantML.

    python benchmarks/qat_step.py
    python benchmarks/qat_step.py --peer-python <venv>/bin/python --variants float w4a4 brevitas_learned torchao_pt2e

One run measures all variants in lock-step: in every round each variant makes the same number of steps (forward, loss,
backward, AdamW), in an order that rotates.  Figures are medians of the ratios to `float` round by round, with
quartiles, so that what else the machine does hits all of them alike; `--clock cpu` counts the time that the process
got on its core in place of the time that passed, for machines that others use (CPU, one thread).  Each variant lives
in a process of its own, so that peers may have their own environment (`pip install brevitas torchao pquant-ml`) and
memory is counted apart: the peak of the resident set beyond imports and model, or of the device's allocator.

How many quantizers a variant runs is printed: nobody is compared with a model that quantizes less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
Factory = Callable[..., nn.Module]
OWN = {
    "w4a4": (4, 4, "dense", 0.0),
    "w2a2": (2, 2, "dense", 0.0),
    "w8a8": (8, 8, "dense", 0.0),
    "w1a8": (1, 8, "dense", 0.0),
    "sparse": (4, 4, "sparse", 0.8),
    "binary_plus_sparse": (1, 4, "binary_plus_sparse", 0.98),
}
PEERS = ("brevitas_learned", "brevitas_constant", "torchao_pt2e", "pquant")
MODES = ("channels_last", "integer", "compiled", "cuda_graphs")
DEFAULT = ("float", *OWN, "float+channels_last", "w4a4+channels_last", "float+compiled", "w4a4+compiled")


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; layers come from a factory."""

    def __init__(self, layers: dict[str, Factory], inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = layers["conv"](inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(outputs), layers["relu"]()
        self.conv2 = layers["conv"](outputs, outputs, 3, 1, 1, bias=False)
        self.bn2, self.branch = nn.BatchNorm2d(outputs), layers["identity"]()
        self.short: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = layers["conv"](inputs, outputs, 1, stride, 0, bias=False)
            self.short = nn.Sequential(projection, nn.BatchNorm2d(outputs), layers["identity"]())
        self.relu2 = layers["relu"]()

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (N, C, H, W)."""
        y = self.branch(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))))
        return self.relu2(y + self.short(x))


class ResNet(nn.Module):
    """ResNet-20 for 32x32 or ResNet-18 for 64x64 images, with projection shortcuts."""

    def __init__(self, layers: dict[str, Factory], widths: list[int], blocks: int, stem_stride: int) -> None:
        super().__init__()
        self.input = layers["identity"]()
        self.stem = layers["conv"](3, widths[0], 3, stem_stride, 1, bias=False)
        self.bn, self.relu = nn.BatchNorm2d(widths[0]), layers["relu"]()
        stages: list[nn.Module] = []
        inputs = widths[0]
        for number, width in enumerate(widths):
            for block in range(blocks):
                stages.append(Block(layers, inputs, width, 2 if number and not block else 1))
                inputs = width
        self.stages = nn.Sequential(*stages)
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.classes = layers["linear"](inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        x = self.stages(self.relu(self.bn(self.stem(self.input(x)))))
        return self.classes(self.flatten(self.pool(x)))


FLOAT: dict[str, Factory] = {"conv": nn.Conv2d, "linear": nn.Linear, "relu": nn.ReLU, "identity": nn.Identity}
NETWORKS = {"resnet20": ([16, 32, 64], 3, 1, 32), "resnet18": ([64, 128, 256, 512], 2, 2, 64)}


def network(name: str, layers: dict[str, Factory]) -> nn.Module:
    """A network of the given layers."""
    widths, blocks, stem_stride, _ = NETWORKS[name]
    return ResNet(layers, widths, blocks, stem_stride)


def own_model(name: str, variant: str, x_NCHW: Tensor) -> tuple[nn.Module, int]:
    """This package's quantized network, and its number of quantizers."""
    sys.path.insert(0, str(ROOT))
    import qat
    from hwmodel import LayerConfig, NetworkConfig, WeightFormat
    from qat.quantizers import ActQuantizer, WeightQuantizer

    weight_bits, act_bits, weight_format, sparsity = OWN[variant]
    model = network(name, FLOAT)
    layer = LayerConfig(weight_bits, act_bits, sparsity, WeightFormat(weight_format))
    spec = qat.trace(model, tuple(x_NCHW.shape[1:]))
    config = NetworkConfig(tuple((spec.name, layer) for spec in spec.weighted), sum_bit_width=act_bits)
    prepared = qat.prepare(model, config, tuple(x_NCHW.shape[1:])).to(x_NCHW.device)
    prepared.calibrate([x_NCHW])
    return prepared, sum(isinstance(module, ActQuantizer | WeightQuantizer) for module in prepared.modules())


def integer_forward(model: nn.Module) -> bool:
    """Lets this package's layers compute forward in integers; whether the processor gains by it."""
    from qat.layers import use_integer_forward

    return use_integer_forward(model)


def brevitas_model(name: str, variant: str) -> tuple[nn.Module, int]:
    """The same network of Brevitas' layers at 4 bits, and its number of quantizers."""
    import brevitas.nn as qnn
    from brevitas.core.scaling import ScalingImplType
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat, Uint8ActPerTensorFloat

    learned = variant == "brevitas_learned"
    kind = ScalingImplType.PARAMETER_FROM_STATS if learned else ScalingImplType.STATS
    weight = {"weight_bit_width": 4, "weight_quant": Int8WeightPerChannelFloat, "weight_scaling_impl_type": kind}
    fixed = {} if learned else {"scaling_impl_type": ScalingImplType.CONST, "scaling_init": 6.0}
    fixed |= {} if learned else {"max_val": 6.0, "min_val": -6.0}
    layers: dict[str, Factory] = {
        "conv": lambda *args, **kwargs: qnn.QuantConv2d(*args, **weight, **kwargs),
        "linear": lambda *args: qnn.QuantLinear(*args, bias=True, **weight),
        "relu": lambda: qnn.QuantReLU(bit_width=4, act_quant=Uint8ActPerTensorFloat, **_unsigned(fixed)),
        "identity": lambda: qnn.QuantIdentity(bit_width=4, act_quant=Int8ActPerTensorFloat, **fixed),
    }
    model = network(name, layers)
    proxies = [m for m in model.modules() if type(m).__name__.startswith(("WeightQuantProxy", "ActQuantProxy"))]
    return model, sum(bool(proxy.is_quant_enabled) for proxy in proxies)


def _unsigned(fixed: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fixed.items() if key != "min_val"}


def pquant_model(name: str) -> tuple[nn.Module, int]:
    """The same network of PQuantML's layers at 4 bits (powers of two as steps, no pruning), and its quantizers."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    from pquant.core.hyperparameter_optimization import PQConfig
    from pquant.core.torch.activations import PQActivation
    from pquant.core.torch.layers import PQConv2d, PQDense
    from pquant.core.utils import get_default_config

    config = PQConfig.load_from_config(get_default_config("pdp"))
    weight = {"weight_quant_bits": (1.0, 0.0, 3.0), "weight_quant_granularity": "per_channel"}
    weight |= {"quantize_input": False, "enable_pruning": False}
    output = {"quantize_input": False, "quantize_output": True}
    signed, unsigned = (1.0, 2.0, 1.0), (0.0, 2.0, 2.0)  # sign, integer and fractional bits
    layers: dict[str, Factory] = {
        "conv": lambda *args, **kwargs: PQConv2d(config, *args, **weight, **kwargs),
        "linear": lambda *args: PQDense(config, *args, **weight),
        "relu": lambda: PQActivation(config, "relu", out_quant_bits=unsigned, **output),
        "identity": lambda: PQActivation(config, nn.Identity(), out_quant_bits=signed, **output),
    }
    model = network(name, layers)
    biases = sum(isinstance(module, PQDense) for module in model.modules())  # a bias is quantized too
    return model, biases + sum(isinstance(module, PQConv2d | PQDense | PQActivation) for module in model.modules())


def torchao_model(name: str, x_NCHW: Tensor) -> tuple[nn.Module, int]:
    """The same network by torchao's PT2E flow (8 bits), and its number of fake quantizers."""
    import torchao.quantization.pt2e as pt2e
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    program = torch.export.export(network(name, FLOAT).train(), (x_NCHW,)).module()
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config(is_qat=True))
    model = prepare_qat_pt2e(program, quantizer)
    pt2e.move_exported_model_to_train(model)
    return model, sum("FakeQuantize" in type(module).__name__ for module in model.modules())


def worker(arguments: argparse.Namespace) -> None:
    """Builds one variant, then makes steps as the parent asks."""
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    variant, *modes = arguments.worker.split("+")
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    size = NETWORKS[arguments.network][3]
    x_NCHW = torch.randn(arguments.batch, 3, size, size, device=device)
    labels = torch.randint(0, 10, (arguments.batch,), device=device)
    if variant == "float":
        model, quantizers = network(arguments.network, FLOAT), 0
    elif variant in OWN:
        model, quantizers = own_model(arguments.network, variant, x_NCHW)
    elif variant == "torchao_pt2e":
        model, quantizers = torchao_model(arguments.network, x_NCHW)
    elif variant == "pquant":
        model, quantizers = pquant_model(arguments.network)
    else:
        model, quantizers = brevitas_model(arguments.network, variant)
    model = model.to(device).train() if variant != "torchao_pt2e" else model.to(device)
    if "integer" in modes and not integer_forward(model):
        raise SystemExit("this processor gains nothing by integer convolutions")
    if "channels_last" in modes:
        model, x_NCHW = model.to(memory_format=torch.channels_last), x_NCHW.to(memory_format=torch.channels_last)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    step_of: Any = model
    if "compiled" in modes:
        step_of = torch.compile(model)
    elif "cuda_graphs" in modes:  # compiled, and kernels recorded and replayed
        step_of = torch.compile(model, mode="reduce-overhead")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(step_of(x_NCHW), labels).backward()
        optimizer.step()

    for _ in range(arguments.warmup):
        step()
    print(json.dumps({"quantizers": quantizers}), flush=True)
    for _ in sys.stdin:  # one line asks for one round
        start = clock()
        for _ in range(arguments.steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
        elapsed = (clock() - start) / arguments.steps
        print(json.dumps({"seconds": elapsed, "peak_bytes": peak}), flush=True)


class Variant:
    """A worker process and what it measured."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name = name
        self.seconds: list[float] = []
        self.peak_bytes = 0
        own = [sys.executable if name.split("+")[0] not in PEERS else arguments.peer_python, __file__]
        passed = ("network", "batch", "steps", "warmup", "threads", "device", "clock")
        options = [f"--{key}={getattr(arguments, key)}" for key in passed]
        self.process = subprocess.Popen(
            [*own, f"--worker={name}", *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.quantizers = 0

    def wait(self) -> None:
        """Until the network is built, compiled where that is asked, and warm; all variants do this side by side."""
        self.quantizers = int(self._answer()["quantizers"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise RuntimeError(f"variant {self.name} stopped with exit code {self.process.wait()}; its error is above")

    def round(self) -> None:
        """Some steps."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.seconds.append(answer["seconds"])
        self.peak_bytes = max(self.peak_bytes, answer["peak_bytes"])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(NETWORKS), default="resnet20")
    parser.add_argument("--variants", nargs="+", default=list(DEFAULT), help=f"of {[*OWN, *PEERS]}, with +{MODES}")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=2, help="steps of each variant per round")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has the peers")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else arguments.device
    print(f"{date.today()}  {platform.machine()}, {os.cpu_count()} CPUs, {arguments.threads} threads, {device}")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    rounds = f"{arguments.rounds} rounds of {arguments.steps} steps, {arguments.clock} time"
    print(f"{arguments.network}, batch {arguments.batch}, {rounds}\n")
    names = list(dict.fromkeys(["float", *arguments.variants]))
    variants = [Variant(name, arguments) for name in names]
    for variant in variants:
        variant.wait()
    for number in range(arguments.rounds):
        for place in range(len(variants)):
            variants[(place + number) % len(variants)].round()
    reference = variants[0]
    head = f"{'variant':26} {'quantizers':>10} {'ms per step':>12} {'to float, median (quartiles)':>30}"
    print(f"{head} {'peak memory':>12}")
    for variant in variants:
        ratios = [ours / base for ours, base in zip(variant.seconds, reference.seconds, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        milliseconds = 1e3 * statistics.median(variant.seconds)
        memory = f"{variant.peak_bytes / 2**20:.0f} MiB"
        ratio = f"{middle:.2f} ({low:.2f}-{high:.2f})"
        print(f"{variant.name:26} {variant.quantizers:10} {milliseconds:12.1f} {ratio:>30} {memory:>12}")
    for variant in variants:
        assert variant.process.stdin is not None
        variant.process.stdin.close()
        variant.process.wait()


if __name__ == "__main__":
    main()
