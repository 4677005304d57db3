"""What all scripts share: compose, check, open the run folder, call one function, turn errors into exit codes.

| exit code | meaning                                                              |
|-----------|----------------------------------------------------------------------|
| 0         | done                                                                 |
| 1         | it could not be done; one line on stderr says why and what to do     |
| 2         | a setting is unknown, mistyped or out of range; nothing was started  |
| 130       | interrupted; the same command goes on where it stopped               |
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from hwmodel.errors import HwModelError
from qat.compose import CONF_FOLDER, apply_overrides, check_keys, config_from_dict, register, to_config
from qat.config import Config
from qat.errors import ConfigError, QatError
from qat.inputs import check_inputs
from qat.runs import RunFolder

OpenFolder = Callable[[Config, Sequence[str]], RunFolder]
"""`RunFolder.create` or `RunFolder.reopen`."""

_CODE_KEYS = ("hydra.callbacks", "hydra.job_logging", "hydra.hydra_logging")
"""Keys of Hydra that name classes to instantiate."""


def run_stage(
    stage: Callable[[Config, RunFolder], int | None],
    description: str,
    open_folder: OpenFolder = RunFolder.create,
    root: str = "run",
    trains: bool = False,
) -> int:
    """The body of a script that works in a run folder.

    Args:
        stage: Does the work; returns an exit code, or None for 0.
        description: What `--help` says first.
        open_folder: How the run folder is opened.
        root: YAML of `conf/` to start from.
        trains: Whether weights, images and GPUs have to be there, and no other command may train in the folder.

    Returns:
        Exit code.
    """

    def job(composed: DictConfig) -> int | None:
        given = list(HydraConfig.get().overrides.task)
        config = _config_of(composed, given)
        if trains:
            check_inputs(config)
        run = open_folder(config, given)
        alone = run.training() if trains else nullcontext()
        with run.in_use(), alone, _log_to(run.path / f"{Path(sys.argv[0]).stem}.log"):
            return stage(config, run)

    return _launch(job, description, root)


def run_estimate(stage: Callable[[Config], int | None], description: str, root: str = "run") -> int:
    """The body of a script that writes nothing; arguments and result as in `run_stage`."""

    def job(composed: DictConfig) -> int | None:
        return stage(_config_of(composed, list(HydraConfig.get().overrides.task)))

    return _launch(job, description, root)


def _config_of(composed: DictConfig, given: Sequence[str]) -> Config:
    if composed.get("run"):
        earlier = RunFolder.open(composed.run)
        stored = config_from_dict(earlier.config_values(), str(earlier.path / "config.yaml"))
        apply_overrides(stored, composed, given)
        return to_config(stored)
    config = to_config(composed)
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        own = HydraConfig.get().job.override_dirname
        config.run_dir = str(Path(config.run_dir) / (re.sub(r"[^\w.=,+-]+", "_", own) or "default"))
    return config


def _launch(job: Callable[[DictConfig], int | None], description: str, root: str) -> int:
    codes: list[int] = []

    def guarded(composed: DictConfig) -> None:
        codes.append(1)
        try:
            codes[-1] = job(composed) or 0
        except (QatError, HwModelError) as error:
            codes[-1] = _report(error)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            place = f" ({error.filename})" if error.filename else ""
            sys.stderr.write(f"{error.strerror}{place}: free some space; the same command goes on where it stopped\n")

    register(description)
    try:
        _refuse_code(sys.argv[1:])
        check_keys([argument for argument in sys.argv[1:] if "=" in argument or argument.startswith("~")])
        with _output_written():
            hydra.main(version_base="1.3", config_path=str(CONF_FOLDER), config_name=root)(guarded)()
    except ConfigError as error:
        return _report(error)
    except BrokenPipeError:
        # As in `--help | head`: who reads has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on where it stopped\n")
        return 130
    except SystemExit as stop:
        # Hydra has printed its message; without a job it could not make a configuration of the arguments.
        if stop.code and not codes:
            return 2
        raise
    return max(codes, default=0)


@contextmanager
def _output_written() -> Iterator[None]:
    """What is printed reaches its reader before this is left, so that it is known whether there is one."""
    try:
        yield
    finally:
        sys.stdout.flush()


def _report(error: QatError | HwModelError) -> int:
    sys.stderr.write(f"{type(error).__name__}: {error}\n")
    return 2 if isinstance(error, ConfigError) else 1


def _refuse_code(arguments: Sequence[str]) -> None:
    """Refuses arguments that would make Hydra import and call what they name."""
    for argument in arguments:
        key = argument.partition("=")[0].lstrip("+~").replace("/", ".")
        if "_target_" in argument or key.startswith(_CODE_KEYS):
            raise ConfigError(f"{argument!r} names code to run, which no setting may do; leave it out")


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Writes what is logged into the run folder too."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
