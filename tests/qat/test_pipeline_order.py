"""What stages look for before they work, and in which order they leave their files."""

from __future__ import annotations

from pathlib import Path

import pytest

from qat import pipeline
from qat.config import Config
from qat.errors import RunFolderError
from qat.report import Result
from qat.runs import RunFolder
from tests.qat.small_run import small_config

RESULT = Result(
    name="uniform_w2", kind="uniform", images=360, score="accuracy", float_score=0.98, quantized_score=0.97,
    integer_score=None, lost=None, won=None, differing_codes=None, stored_bits=1000, bits_per_weight=2.1,
    compression=15.0, bound_compression=16.0, bram18=4, bram18_available=280, offchip_bits=100,
    baseline_offchip_bits=200, fps=1000.0,
)  # fmt: skip


def config_of(folder: Path) -> Config:
    return small_config(folder, "trainer.float_epochs=1")


def test_nothing_is_trained_to_export_or_verify_what_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qat.pipeline.integers.train", lambda *_: pytest.fail("trained"))
    config = config_of(tmp_path / "run")
    run = RunFolder.create(config)
    for stage in (pipeline.export, pipeline.verify):
        with pytest.raises(RunFolderError, match=r"has no trained network; run scripts/search\.py first"):
            stage(config, run)
    run.write_json("networks/uniform_w2/result.json", RESULT.to_dict())
    with pytest.raises(RunFolderError, match=r"uniform_w2 has no packed files; run scripts/export\.py first"):
        pipeline.verify(config, run)
    (run.path / "networks" / "uniform_w2" / "result.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"uniform_w2/result\.json is damaged: .*; remove it and run the same"):
        pipeline.export(config, run)


def test_a_float_network_that_counts_as_measured_has_all_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed between two files leaves what makes the next one write both."""
    write, written = RunFolder.write_json, []

    def killed(self: RunFolder, name: str, value: object) -> Path:
        if written:
            raise KeyboardInterrupt
        written.append(name)
        return write(self, name, value)

    config = config_of(tmp_path / "run")
    run = RunFolder.create(config)
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            pipeline.train(config, run)
    pipeline.train(config, run)
    assert (run.path / "float.json").is_file() and (run.path / "network.json").is_file()
