"""The package as its users see it: from outside, by its stable names; with a network of their own."""

from __future__ import annotations

import json
import logging
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qat
from hwmodel import load_board, schedule, uniform
from qat.errors import ExportError, PackedFormatError
from qat.export import load_packed
from tests.qat.nets import NORMALIZATION, Residual, images, settle

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def test_names_are_there_and_come_late() -> None:
    code = (
        "import sys, qat, qat.deployment, qat.graph, qat.export\n"
        "print(*(callable(f) for f in (qat.prepare, qat.trace, qat.deploy, qat.export.export, qat.export.load_packed)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 5
    assert {"prepare", "trace", "deploy", "export"} <= set(dir(qat))
    with pytest.raises(AttributeError, match="module 'qat' has no attribute 'quantise'"):
        _ = qat.quantise


def test_from_a_float_model_to_codes_from_packed_files(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = settle(Residual())
    network = qat.trace(model, (3, 16, 16))
    config = uniform(network, 4, 4)
    prepared = qat.prepare(model, config)
    prepared.calibrate([NORMALIZATION(images(32))])
    deployed = qat.deploy(prepared.eval(), NORMALIZATION)
    batch = images(8, seed=3)
    plan = schedule(network, config, load_board("zcu102"))
    written = qat.export.export(prepared, tmp_path / "packed", plan, NORMALIZATION, ("a", "b", "c", "d"))
    packed = load_packed(tmp_path / "packed")
    codes = packed.run(batch.numpy())
    assert np.array_equal(codes, deployed(batch).numpy())
    assert np.array_equal(codes, written.run(batch.numpy()))
    by_layer, expected = packed.layer_codes(batch.numpy()), deployed.layer_codes(batch)
    assert list(by_layer) == [layer.name for layer in network.layers]
    assert all(np.array_equal(by_layer[name], expected[name].numpy()) for name in by_layer)
    assert packed.class_names == ("a", "b", "c", "d")


def test_a_deployed_model_can_be_exported_and_others_are_refused(tmp_path: Path) -> None:
    model = settle(Residual())
    prepared = qat.prepare(model, uniform(qat.trace(model, (3, 16, 16)), 4, 4))
    prepared.calibrate([NORMALIZATION(images(32))])
    deployed = qat.deploy(prepared.eval(), NORMALIZATION)
    packed = qat.export.export(deployed, str(tmp_path / "packed"))
    batch = images(4, seed=3)
    assert np.array_equal(packed.run(batch.numpy()), deployed(batch).numpy())
    with pytest.raises(ExportError, match="give it to qat.deploy instead"):
        qat.export.export(deployed, tmp_path / "packed", normalization=NORMALIZATION)
    with pytest.raises(ExportError, match="model is a Residual, .* a float model goes through qat.prepare first"):
        qat.export.export(model, tmp_path / "other")
    (tmp_path / "packed" / "weights.bin").write_bytes(b"")
    with pytest.raises(PackedFormatError, match=r"weights\.bin"):
        load_packed(tmp_path / "packed")


OWN = '''
import torch.nn.functional as F
from torch import nn


class Own(nn.Module):
    """Padding of its own, biases in convolutions, batch norm with epsilon 1e-3."""

    def __init__(self, num_classes):
        super().__init__()
        self.pad = nn.ZeroPad2d((2, 2, 1, 1))
        self.stem = nn.Conv2d(1, 6, 3)
        self.stem_norm = nn.BatchNorm2d(6, eps=1e-3)
        self.body = nn.Conv2d(6, 8, 3, 2)
        self.body_norm = nn.BatchNorm2d(8, eps=1e-3)
        self.classes = nn.Linear(8, num_classes)

    def forward(self, x):
        x = F.relu(self.stem_norm(self.stem(self.pad(x))))
        x = F.relu(self.body_norm(self.body(F.pad(x, (1, 1, 1, 1)))))
        return self.classes(x.mean((2, 3)))
'''

SMALL = (
    "experiment=digits_demo",
    "network.name=own",
    "network.factory=own_network:Own",
    "trainer.float_epochs=1",
    "trainer.epochs=1",
    "trainer.progress_bar=false",
    "trainer.accelerator=cpu",
    "search.trials=2",
    "search.initial_trials=2",
    "search.train_steps=2",
    "search.sensitivity_images=32",
    "search.weight_bit_widths=[1,4]",
    "search.significant_densities=[]",
    "search.sparse_densities=[]",
    "search.min_compression=[2]",
    "baselines=[]",
    "run_dir=run",
)


@pytest.fixture
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working directory with the user's network; logging and modules as they were afterwards."""
    monkeypatch.chdir(tmp_path)
    Path("own_network.py").write_text(OWN, encoding="utf-8")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    sys.modules.pop("own_network", None)


def _call(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
    return int(stopped.value.code or 0)


@pytest.mark.usefixtures("_elsewhere")
def test_a_users_own_network_goes_through_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _call(monkeypatch, "search", *SMALL) == 0
    assert _call(monkeypatch, "export", "run=run") == 0
    assert _call(monkeypatch, "verify", "run=run") == 0
    (result,) = json.loads(Path("run/summary.json").read_text())
    assert result["differing_codes"] == 0
    packed = load_packed("run/networks/mix_2x/packed")
    assert packed.network.by_name["stem"].padding == (1, 2)
    assert packed.network.by_name["body"].padding == (1, 1)
    # One code of the packed files changed, checksums and all: verify must find it and exit non-zero.
    state = torch.load("run/networks/mix_2x/model.ckpt", weights_only=True)
    weights = state["state_dict"]["stem.weight"]
    weights.copy_(-weights)
    torch.save(state, "run/networks/mix_2x/model.ckpt")
    assert _call(monkeypatch, "verify", "run=run") != 0


def test_epsilon_and_biases_reach_the_integers() -> None:
    """A batch norm whose variance is not far from its epsilon, so that another epsilon would be seen."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4, eps=1e-3), nn.ReLU(), nn.Conv2d(4, 3, 1))
    with torch.no_grad():
        model[0].weight.mul_(0.01)
        model[0].bias.copy_(torch.tensor([0.3, -0.2, 0.1, 0.4]))
    prepared = qat.prepare(model, uniform(qat.trace(model, (3, 8, 8)), 8, 8), (3, 8, 8))
    prepared.calibrate([NORMALIZATION(images(64, 8))])
    deployed = qat.deploy(prepared.eval(), NORMALIZATION)
    norm = prepared.layer("0").batch_norm
    assert norm.eps == 1e-3 and norm.running_var.max() < 3e-3
    batch = images(8, 8, seed=2)
    with torch.no_grad():
        expected = prepared(NORMALIZATION(batch))
    error = (deployed(batch) * deployed.output_scales[0] - expected).norm() / expected.norm()
    assert error < 0.02
