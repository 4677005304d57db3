"""What a user can get wrong, refused before anything is planned or trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hwmodel import BudgetError
from qat import pipeline
from qat.errors import CheckpointError, ConfigError, QatError, SearchError
from qat.pipeline.retargeting import retarget_run
from qat.runs import RunFolder
from tests.qat.small_run import small_config


@pytest.fixture
def unplanned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where something is planned."""
    for stage in ("searching", "retargeting"):
        monkeypatch.setattr(f"qat.pipeline.{stage}.plan", lambda _: pytest.fail("something was planned"))


def test_a_board_too_small_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run", "board.bram18=2", "board.lut=900", "board.dsp=2", "board.uram=0")
    with pytest.raises(BudgetError, match=r"(bram18|lut|dsp)"):
        pipeline.search(config, RunFolder.create(config))
    assert not (tmp_path / "run" / "float.ckpt").exists()


def test_a_target_that_nothing_reaches_is_refused_with_what_is_reachable(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run", "search.min_compression=[200]")
    with pytest.raises(SearchError, match=r"compression"):
        pipeline.search(config, RunFolder.create(config))


def test_unknown_layer_patterns_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run", "search.layers=[{pattern: layer9.*, weight_bit_widths: [8]}]")
    with pytest.raises(ConfigError, match=r"'layer9\.\*' matches no layer; layers with weights are \['conv1'"):
        pipeline.search(config, RunFolder.create(config))
    assert not (tmp_path / "run" / "float.ckpt").exists()


def test_a_network_for_other_classes_is_refused(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run", "network.num_classes=7")
    with pytest.raises(ConfigError, match=r"network\.num_classes=7, expected 10: data digits has the classes 0, 1, 2"):
        pipeline.train(config, RunFolder.create(config))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"network\.input_shape=\[1, 16, 16\], expected \[1, 8, 8\], the shape of the images of digits"),
        (
            ["data=cifar10", "network=resnet20"],
            r"network\.input_shape=\[3, 16, 16\], expected \[3, 32, 32\], .*cifar10",
        ),
    ],
)
def test_a_network_for_images_of_another_shape_is_refused_before_anything_is_planned(
    overrides: list[str], message: str, tmp_path: Path, unplanned: None
) -> None:
    shape = f"network.input_shape=[{3 if overrides else 1},16,16]"
    config = small_config(tmp_path / "run", *overrides, shape)
    for stage in (pipeline.search, pipeline.train):
        with pytest.raises(ConfigError, match=message):
            stage(config, RunFolder.create(config))


def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unplanned: None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    config = small_config(tmp_path / "run", "trainer.accelerator=gpu")
    with pytest.raises(ConfigError, match=r"trainer\.accelerator='gpu', expected auto or cpu: torch finds no GPU here"):
        pipeline.train(config, RunFolder.create(config))
    with pytest.raises(ConfigError, match=r"torch finds no GPU here"):
        retarget_run(config, more_trials=1)


def test_missing_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run", f"network.weights={tmp_path / 'none.pth'}")
    with pytest.raises(CheckpointError, match=r"network\.weights='.*none\.pth' does not exist, expected a checkpoint"):
        pipeline.train(config, RunFolder.create(config))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["network.weights=/nope.ckpt"], r"network\.weights='/nope\.ckpt' does not exist"),
        (["network=resnet20", "data=cifar10", "data.root=/nope/a"], r"data\.root='/nope/a' does not exist"),
    ],
)
def test_missing_files_are_refused_before_anything_is_planned(
    overrides: list[str], message: str, tmp_path: Path, unplanned: None
) -> None:
    config = small_config(tmp_path / "run", *overrides)
    with pytest.raises(QatError, match=message):
        pipeline.search(config, RunFolder.create(config))
