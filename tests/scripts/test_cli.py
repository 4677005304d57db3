"""The scripts as a user calls them, and what all of them share."""

from __future__ import annotations

import errno
import logging
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from hwmodel.errors import BudgetError
from qat.cli import run_estimate, run_stage
from qat.compose import GROUPS, compose_config
from qat.config import Config, TrainerSettings
from qat.errors import ConfigError, TrainingError
from qat.runs import RunFolder

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
NAMES = ("cost", "demo", "demo_detect", "export", "report", "retarget", "search", "status", "train", "verify")


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test in its own working directory; logging as it was, because Hydra configures it."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def call(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: str) -> int:
    """Runs a script as `python scripts/<script>.py` does and returns its exit code."""
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
    return int(stopped.value.code or 0)


class Recorder:
    """A stage that keeps what it was called with."""

    def __init__(self, result: int | None = None, error: BaseException | None = None) -> None:
        self.calls: list[tuple[Config, RunFolder]] = []
        self.result = result
        self.error = error

    def __call__(self, config: Config, run: RunFolder) -> int | None:
        self.calls.append((config, run))
        logging.getLogger("qat.test").warning("working")
        if self.error:
            raise self.error
        run.write_json("float.json", {})
        return self.result


def launch(monkeypatch: pytest.MonkeyPatch, stage: Recorder, *arguments: str, trains: bool = False) -> int:
    monkeypatch.setattr(sys, "argv", ["stage.py", *arguments])
    return run_stage(stage, "A stage.", trains=trains)


def test_all_scripts_are_known() -> None:
    assert sorted(path.stem for path in SCRIPTS.glob("*.py")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_help_explains_the_groups(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, name, "--help") == 0
    text = capsys.readouterr().out
    assert (SCRIPTS / f"{name}.py").read_text(encoding="utf-8").splitlines()[0].strip('"') in text
    for group, words in GROUPS.items():
        assert f"{group}: {words}" in text
    assert "zcu102" in text
    assert "$" not in text.split("The configuration that")[0]
    assert list(Path.cwd().iterdir()) == []


def test_help_explains_every_setting(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "search", "--help") == 0
    settings = capsys.readouterr().out.partition("\nSettings:\n")[2].partition("\nThe configuration that")[0]
    entries = dict(re.findall(r"^  ([\w.\[\]]+):(.*)", settings, flags=re.MULTILINE))
    for key, words in (
        ("search.trials", "Configurations to evaluate, the first designs included; 0 trains the baselines alone."),
        ("search.layers[].pattern", "Name of a layer, or a pattern of names (`layer3.*`)."),
        ("data.detection.workers", "Processes that decode and augment; 0 for none beside the one that trains."),
        ("board.uram", "UltraRAMs of 288 Kibit."),
        ("seed", "Of training; the same seed gives the same result on the same machine."),
    ):
        assert entries[key] == f" {words}"
    assert all(words.strip() for words in entries.values())
    assert {f"trainer.{field.name}" for field in fields(TrainerSettings)} <= set(entries)
    assert max(map(len, settings.splitlines())) <= 120


@pytest.mark.parametrize("name", NAMES)
def test_misspelt_key_fails_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, name, "trainer.epochss=1") == 2
    assert "trainer.epochss" in capsys.readouterr().err
    assert call(monkeypatch, name, "+trainer.epochss=1") == 2
    assert "trainer.epochss is not a setting; did you mean trainer.epochs?" in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("boards=zcu102", "boards is not a setting; did you mean board?"),
        ("search.trails=3", "search.trails is not a setting; did you mean search.trials?"),
        (
            "++search.executor.worker=3",
            "search.executor.worker is not a setting; did you mean search.executor.workers?",
        ),
        ("~trainr", "trainr is not a setting; did you mean trainer?"),
        ("data.detection.imagesize=[1,1]", "did you mean data.detection.image_size?"),
        ("board.zzz=1", "board.zzz is not a setting; board has name, family, bram18,"),
    ],
)
def test_unknown_settings_have_a_hint(
    argument: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = Recorder()
    assert launch(monkeypatch, stage, argument) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is not a setting"):
        compose_config([argument])
    assert not stage.calls


@pytest.mark.parametrize("name", ["export", "report", "verify"])
def test_stages_that_need_a_run_say_so(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, name) == 1
    assert "does not exist; name one with run=<folder>" in capsys.readouterr().err
    assert call(monkeypatch, name, "run=missing") == 1
    assert f"run folder {Path.cwd() / 'missing'} does not exist" in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    "argument",
    [
        "+hydra.callbacks.x._target_=os.system",
        "hydra.launcher._target_=os.system",
        "++network={_target_: os.system}",
        "hydra.job_logging.handlers.x.class=os.system",
        "hydra/callbacks=evil",
    ],
)
def test_no_setting_names_code(
    argument: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = Recorder()
    assert launch(monkeypatch, stage, argument) == 2
    assert "names code to run, which no setting may do" in capsys.readouterr().err
    assert not stage.calls


def test_stage_gets_configuration_and_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Recorder()
    assert launch(monkeypatch, stage, "seed=4") == 0
    ((config, run),) = stage.calls
    assert config.seed == 4
    assert run.path == Path("runs/digits_resnet_digits").resolve()
    assert "WARNING qat.test: working" in (run.path / "stage.log").read_text(encoding="utf-8")
    assert not list(Path.cwd().glob("*.log"))


@pytest.mark.parametrize(
    ("stage", "code", "message"),
    [
        (Recorder(result=3), 3, ""),
        (Recorder(error=TrainingError("the loss became nan")), 1, "TrainingError: the loss became nan\n"),
        (Recorder(error=BudgetError("block RAM: 300 of 280")), 1, "BudgetError: block RAM: 300 of 280\n"),
        (
            Recorder(error=OSError(errno.ENOSPC, "No space left on device", "a/b.csv")),
            1,
            "No space left on device (a/b.csv): free some space; the same command goes on where it stopped\n",
        ),
        (Recorder(error=KeyboardInterrupt()), 130, "interrupted; the same command goes on where it stopped\n"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    stage: Recorder, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(monkeypatch, stage) == code
    assert capsys.readouterr().err == message


def test_an_error_that_is_none_of_ours_shows_where_it_came_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        launch(monkeypatch, Recorder(error=PermissionError(errno.EACCES, "Permission denied")))
    assert "Traceback" in capsys.readouterr().err


def test_a_second_command_that_trains_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = Recorder()
    assert launch(monkeypatch, stage, "run_dir=r", trains=True) == 0
    with RunFolder.open("r").training():
        assert launch(monkeypatch, stage, "run_dir=r", trains=True) == 1
        assert "another command trains in the run folder" in capsys.readouterr().err
        assert launch(monkeypatch, stage, "run_dir=r") == 0  # one that reads only
    assert len(stage.calls) == 2


def test_unwritable_run_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    stage = Recorder()
    assert launch(monkeypatch, stage, "run_dir=file/run") == 1
    message = capsys.readouterr().err
    assert "cannot be written" in message
    assert "run_dir=<folder>" in message
    assert not stage.calls


def test_other_configuration_in_the_same_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = Recorder()
    assert launch(monkeypatch, stage, "run_dir=r") == 0
    assert launch(monkeypatch, stage, "run_dir=r", "trainer.epochs=3") == 1
    assert "trainer.epochs: 10 there, 3 now" in capsys.readouterr().err
    assert len(stage.calls) == 1


@pytest.mark.parametrize("name", ["demo", "demo_detect", "search", "train"])
def test_missing_files_are_refused_before_a_folder_is_made(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, name, "network.weights=nope.ckpt", "run_dir=r") == 1
    assert f"network.weights='{Path.cwd() / 'nope.ckpt'}' does not exist" in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("name", ["demo", "demo_detect", "search", "train"])
@pytest.mark.parametrize(
    ("gpus", "setting", "message"),
    [
        (0, "trainer.accelerator=gpu", "trainer.accelerator='gpu', expected auto or cpu: torch finds no GPU here"),
        (2, "trainer.devices=4", "trainer.devices=4, expected at most 2, the GPUs that are here"),
    ],
)
def test_a_missing_gpu_is_refused_before_a_folder_is_made(
    name: str,
    gpus: int,
    setting: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert call(monkeypatch, name, setting, "run_dir=r") == 2
    assert capsys.readouterr().err == f"ConfigError: {message}\n"
    assert list(Path.cwd().iterdir()) == []


def test_a_command_that_failed_does_not_block_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch(monkeypatch, Recorder(error=BudgetError("too small")), "run_dir=r", "board=pynq_z2") == 1
    stage = Recorder()
    assert launch(monkeypatch, stage, "run_dir=r", "board=zcu102") == 0
    assert stage.calls[0][1].config_values()["board"]["name"] == "zcu102"


def test_earlier_run_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = Recorder()
    assert launch(monkeypatch, stage, "experiment=cifar10_resnet20", "data.root=images", "run_dir=r") == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert launch(monkeypatch, stage, "run=../r") == 0
    assert stage.calls[1] == stage.calls[0]
    assert launch(monkeypatch, stage, "run=../r", "data.root=/moved") == 0
    assert stage.calls[2][0].data.root == "/moved"
    assert stage.calls[2][0].network == stage.calls[0][0].network
    assert launch(monkeypatch, stage, "run=../r", "board=vc707") == 1
    assert "board.name: 'zcu102' there, 'vc707' now" in capsys.readouterr().err
    assert launch(monkeypatch, stage, "run=../r", "experiment=digits_demo") == 2
    assert "does not go with run=<folder>" in capsys.readouterr().err


def test_multirun_gives_each_job_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Recorder()
    assert launch(monkeypatch, stage, "--multirun", "board=vc707,zcu102", "run_dir=r", "name=sweep") == 0
    assert [config.board.name for config, _ in stage.calls] == ["vc707", "zcu102"]
    assert [run.path.name for _, run in stage.calls] == ["board=vc707", "board=zcu102"]
    assert all(run.path.parent == Path("r").resolve() for _, run in stage.calls)


def test_estimate_needs_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(sys, "argv", ["cost.py", "board=vc707"])

    def stage(config: Config) -> None:
        seen.append(config.board.name)

    assert run_estimate(stage, "Cost.") == 0
    assert seen == ["vc707"]
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("arguments", [("--help",), ("network=resnet20", "board=pynq_z2", "baselines=[4]")])
def test_a_reader_that_has_seen_enough_is_no_error(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """As in `cost.py --help | head`; work that was begun has not ended well."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(SCRIPTS / "cost.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == int(arguments != ("--help",))
    assert done.stderr == ""


def test_script_in_a_process_of_its_own(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "train.py"), "trainer.epochs=0"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr == "ConfigError: trainer.epochs=0, expected a number >= 1\n"
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["-1", "two", "1.5", ""])
def test_more_trials_is_checked(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "retarget", f"more_trials={value}") == 2
    assert capsys.readouterr().err == f"ConfigError: more_trials={value}, expected an integer >= 0\n"
