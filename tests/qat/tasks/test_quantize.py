"""From a float network to a trained quantized one: loaded, tried, probed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hwmodel import LayerConfig, uniform
from hwmodel.precision import NetworkConfig
from qat.errors import CheckpointError
from qat.graph import trace
from qat.rounding import Rounding
from qat.search.trial import Fidelity, Screening
from qat.tasks import Recipe, TrainingTask
from qat.tasks.fit import read_checkpoint
from qat.tasks.quantize import SensitivityProbe, TrialEvaluator, finetune, load_quantized, load_state
from tests.qat.nets import NORMALIZATION, Residual
from tests.qat.tasks.stripes import CPU, Batches, Quarters, Stripes


def test_finetune_is_done_once_and_loads_again(trained: nn.Module, tmp_path: Path) -> None:
    config = uniform(trace(trained, (3, 8, 8)), 2, 4)
    recipe = Recipe(epochs=3, learning_rate=5e-3)
    first = finetune(trained, config, Stripes(), NORMALIZATION, recipe, CPU, tmp_path, seed=1)
    assert (tmp_path / "metrics.csv").is_file()
    assert not (tmp_path / "last.ckpt").exists()
    written = (tmp_path / "model.ckpt").stat().st_mtime_ns
    again = finetune(trained, config, Stripes(), NORMALIZATION, recipe, CPU, tmp_path, seed=1)
    assert (tmp_path / "model.ckpt").stat().st_mtime_ns == written
    for (name, a), b in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert not isinstance(a, Tensor) or torch.equal(a, b), name
    other = uniform(trace(trained, (3, 8, 8)), 3, 4)
    with pytest.raises(CheckpointError, match="another configuration"):
        load_quantized(trained, other, tmp_path / "model.ckpt")


def test_layerwise_rounding_is_for_trials_without_training(trained: nn.Module) -> None:
    config = uniform(trace(trained, (3, 8, 8)), 2, 4, end_bit_width=None)
    recipe = Recipe(learning_rate=1e-2)
    found = {}
    for rounding in Rounding:
        evaluate = TrialEvaluator(trained, Stripes(), NORMALIZATION, recipe, CPU, one_shot_rounding=rounding)
        found[rounding] = [evaluate(config, Fidelity("trial", epochs), 3)["loss"] for epochs in (0, 0.25)]
    nearest, layerwise = found[Rounding.NEAREST], found[Rounding.LAYERWISE]
    assert layerwise[0] < nearest[0]
    assert layerwise[1] == nearest[1]


def test_missing_damaged_and_foreign_weights_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.ckpt does not exist; check network\.weights"):
        read_checkpoint(tmp_path / "none.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(b"PK\x03\x04 something")
    with pytest.raises(CheckpointError, match=r"cut\.ckpt is damaged or no checkpoint"):
        read_checkpoint(tmp_path / "cut.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="holds a list, expected a dictionary"):
        read_checkpoint(tmp_path / "list.ckpt")
    torch.save({"state_dict": Quarters().state_dict()}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"other\.ckpt does not fit the network.*stem\.weight"):
        load_state(Residual(), read_checkpoint(tmp_path / "other.ckpt"), tmp_path / "other.ckpt")
    wide = Quarters()
    wide.linear = nn.Linear(32, 5)
    with pytest.raises(CheckpointError, match=r"2 of another shape \(linear\.weight is \(4, 32\), expected \(5, 32\)"):
        load_state(wide, read_checkpoint(tmp_path / "other.ckpt"), tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"plain\.ckpt holds no tensor under linear\.bias"):
        load_state(wide, {**wide.state_dict(), "linear.bias": 3}, tmp_path / "plain.ckpt")


def test_published_state_dicts_load_with_their_prefix(tmp_path: Path) -> None:
    source, target = Quarters(), Quarters()
    state = {f"module.{name}": value for name, value in source.state_dict().items()}
    torch.save({"state_dict": state, "best": 1.0}, tmp_path / "published.th")
    load_state(target, read_checkpoint(tmp_path / "published.th"), tmp_path / "published.th")
    assert torch.equal(source.linear.weight, target.linear.weight)


@pytest.mark.parametrize("images", [0, 64])
def test_trials_are_reproducible_and_see_training(trained: nn.Module, images: int) -> None:
    config = uniform(trace(trained, (3, 8, 8)), 1, 2, end_bit_width=None)
    evaluate = TrialEvaluator(trained, Stripes(), NORMALIZATION, Recipe(learning_rate=1e-2), CPU, images)
    untrained = evaluate(config, Fidelity("one-shot", 0), 3)
    first, second = (evaluate(config, Fidelity("short", 5), 3) for _ in range(2))
    assert first == second
    assert first["loss"] < untrained["loss"]


class Shuffled(Batches):
    """Fit batches in an order, and validation batches with a number, from torch's generator."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self))
        return iter([list(super(Shuffled, self).__iter__())[i] for i in order])


class ShuffledStripes(Stripes):
    def _batches(self) -> Batches:
        return Shuffled(list(super()._batches()))


def test_a_look_on_the_way_changes_nothing_and_ends_bad_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    beginner = Quarters()
    config = uniform(trace(beginner, (3, 8, 8)), 1, 2, end_bit_width=None)
    evaluate = TrialEvaluator(beginner, ShuffledStripes(), NORMALIZATION, Recipe(learning_rate=2e-3), CPU)
    steps: list[int] = []
    step = TrainingTask.training_step
    monkeypatch.setattr(TrainingTask, "training_step", lambda task, *batch: (steps.append(1), step(task, *batch))[1])

    def run(epochs: float, screening: Screening | None = None) -> dict[str, float]:
        steps.clear()
        return dict(evaluate(config, Fidelity("short", epochs), 3, screening))

    plain, whole = run(2), len(steps)
    assert whole == 2 * len(Stripes().train_dataloader())
    untrained = run(0)["accuracy"]
    for share in (0.0, 0.4, 0.999):
        early = run(2, Screening(share))
        score = early.pop("screening_accuracy")
        assert early == plain and len(steps) == whole
        assert share > 0 or score == untrained
        if share < 0.999:
            assert run(2, Screening(share, score + 1e-6)) == {"screening_accuracy": score}
            assert len(steps) == round(share * whole)


def test_the_probe_ranks_precisions_and_leaves_the_base_alone(trained: nn.Module) -> None:
    network = trace(trained, (3, 8, 8))
    base = uniform(network, 8, 4)
    probe = SensitivityProbe(trained, base, Stripes(), NORMALIZATION, 100)
    assert len(probe.targets) == 128

    def changed(bits: int, act: int = 4) -> NetworkConfig:
        return NetworkConfig(tuple((n, LayerConfig(bits, act) if n == "conv2" else c) for n, c in base.layers))

    losses = [probe(changed(bits)) for bits in (1, 2, 8)]
    assert losses[0] > losses[1] > losses[2] == probe(base)
    narrower = [probe(changed(8, act)) for act in (1, 2, 3)]
    assert narrower[0] > narrower[1] > narrower[2] > losses[2]
    assert probe(base) == losses[2]
    with pytest.raises(ValueError, match=r"layers \['conv2'\] read more bits than in the base"):
        probe(changed(4, act=5))
