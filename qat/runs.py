"""The folder of a run: its configuration, where it was made, and what came out.

| file                         | holds                                                                             |
|------------------------------|-----------------------------------------------------------------------------------|
| `config.yaml`                | every setting, resolved                                                           |
| `overrides.yaml`             | what was given on the command line                                                |
| `environment.json`           | of each command with it: date, seed, versions, revision, device, threads          |
| `summary.csv`, `summary.json`| one row for each network trained in full                                          |
| `<script>.log`               | what the script said                                                              |
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf

from qat.compose import PATHS, config_from_dict, config_to_dict, differences
from qat.config import Config
from qat.errors import RunFolderError
from qat.files import write_text

PACKAGES = (
    "qat-fpga",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "botorch",
    "gpytorch",
    "numpy",
    "scikit-learn",
    "hydra-core",
)
"""Packages whose versions decide about results."""

FREE_KEYS = (
    "run",
    "run_dir",
    "data.root",
    "data.download",
    "network.path",
    "search.executor",
    "search.max_failed_share",
    "search.retry_failed",
    "search.screening_share",
    "search.trials",
    "trainer.accelerator",
    "trainer.compile",
    "trainer.devices",
    "trainer.integer_forward",
    "trainer.num_threads",
    "trainer.progress_bar",
    "trainer.strategy",
)
"""Settings that say where, with what and how long a run works, not what it computes: they may differ on resume."""

LENGTH = (("search", "max_failed_share"), ("search", "screening_share"), ("search", "trials"))
"""Of these the ones that say how long a search is: group and name."""

RECORDS = ("config.yaml", "environment.json", "overrides.yaml")
"""Files that say how a folder's commands were called; all others but logs are results."""


@dataclass(frozen=True)
class RunFolder:
    """A run folder that exists and can be written.

    Args:
        path: Absolute path.
    """

    path: Path

    @classmethod
    def create(cls, config: Config, overrides: Sequence[str] = ()) -> RunFolder:
        """Makes the folder `config.run_dir`, or goes on in it if it holds the same configuration.

        Another configuration takes the place of one whose command left no results and has ended.  Where data, weights
        and the network's code lie now is what later commands find in it.

        Args:
            config: What is going to run.
            overrides: What was given on the command line.

        Raises:
            RunFolderError: The folder cannot be written, or holds results of another configuration.
        """
        run = cls(Path(config.run_dir).resolve())
        run._check_writable()
        is_new = not (run.path / "config.yaml").exists()
        if is_new:
            run._check_unused()
        if is_new or run._is_other(config):
            (run.path / "environment.json").unlink(missing_ok=True)  # of commands with the configuration before
            write_text(run.path / "overrides.yaml", _to_yaml(list(overrides)))
            values = config_to_dict(config)
            values["search"]["retry_failed"] = False  # what was asked for once
            write_text(run.path / "config.yaml", _to_yaml(values))
        elif not run._is_in_use():  # a command that has the folder knows it by this file
            run._note(config, PATHS)
        run._record_environment(config)
        return run

    @classmethod
    def reopen(cls, config: Config, overrides: Sequence[str] = ()) -> RunFolder:
        """Goes on in the folder `config.run_dir`, which must be there.

        Raises:
            RunFolderError: There is no such run folder, or `create` refuses it.
        """
        cls.open(config.run_dir)
        return cls.create(config, overrides)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Opens the folder of an earlier run, from any working directory.

        Raises:
            RunFolderError: There is no such folder, or it is not a run folder.
        """
        run = cls(Path(path).expanduser().resolve())
        if not run.path.is_dir():
            raise RunFolderError(
                f"run folder {run.path} does not exist; name one with run=<folder>, or make one with scripts/search.py"
            )
        if not (run.path / "config.yaml").is_file():
            raise RunFolderError(f"{run.path} is not a run folder: it has no config.yaml")
        return run

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While it lasts no other command gives the folder another configuration."""
        with open(self.path / "config.yaml", "rb") as file:
            with suppress(OSError):  # a disk without locks
                fcntl.flock(file, fcntl.LOCK_SH)
            yield

    @contextmanager
    def training(self) -> Iterator[None]:
        """While it lasts no other command trains in the folder: each would put its weights in the other's place.

        Raises:
            RunFolderError: Another command does.
        """
        if os.environ.get("LOCAL_RANK", "0") != "0":  # one of several processes of the same command
            yield
            return
        with open(self.path / ".training.lock", "a+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops it when the process dies
            except BlockingIOError:
                lock.seek(0)
                raise RunFolderError(
                    f"another command trains in the run folder {self.path} (process {lock.read().strip() or 'unknown'})"
                    "; wait for it to end, stop it, or choose another folder with run_dir=<folder>"
                ) from None
            except OSError:  # a disk without locks
                pass
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            yield

    def note_length(self, config: Config) -> None:
        """Keeps how long the search is, which later commands find in the folder; for the command that searches.

        Other commands may work in the folder: it has results by now, which keep its configuration from being replaced.
        """
        self._note(config, LENGTH)

    def config_values(self) -> dict[str, Any]:
        """The stored configuration as plain values, with this folder as `run_dir`.

        Raises:
            RunFolderError: `config.yaml` cannot be read.
        """
        path = self.path / "config.yaml"
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise RunFolderError(f"{path} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise RunFolderError(f"{path} holds {type(values).__name__}, expected groups of settings")
        return {**values, "run": None, "run_dir": str(self.path)}

    def write_json(self, name: str | Path, value: Any) -> Path:
        """Writes plain values to a file of this folder; the old file stays until the new one is whole.

        Args:
            name: File below the folder, for example `summary.json` or `networks/mix/result.json`.
            value: Plain values.

        Returns:
            The path of the file.

        Raises:
            RunFolderError: The file could not be written.
        """
        path = self.path / name
        write_text(path, json.dumps(value, indent=2) + "\n")
        return path

    def read_json(self, name: str | Path) -> Any:
        """Reads a file that `write_json` wrote.

        Raises:
            RunFolderError: The file is missing or damaged.
        """
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise RunFolderError(f"{path} does not exist; the step that makes it has not run in this folder") from error
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{path} is damaged: {error}; remove it and run the same command again") from error

    def _check_writable(self) -> None:
        probe = self.path / f".write_check.{os.getpid()}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            raise RunFolderError(
                f"run folder {self.path} cannot be written: {error.strerror or error}; "
                "choose another one with run_dir=<folder>"
            ) from error

    def _check_unused(self) -> None:
        """A folder with files that no run made is not filled: it is most likely a slip of the user."""
        names = sorted(path.name for path in self.path.iterdir())
        strangers = [name for name in names if not name.startswith(".") and name != "overrides.yaml"]
        if strangers:
            raise RunFolderError(
                f"run folder {self.path} is not empty ({', '.join(strangers[:3])}) and has no config.yaml; "
                "choose another one with run_dir=<folder>"
            )

    def _is_other(self, config: Config) -> bool:
        """Whether the stored configuration is another one that may be replaced; refuses if it may not."""
        # Settings that came later have the value that means what was done before.
        known = config_from_dict(self.config_values(), str(self.path / "config.yaml"))
        stored = cast(dict[str, Any], OmegaConf.to_container(known))
        changed = differences(_comparable(stored), _comparable(config_to_dict(config)))
        if not changed:
            return False
        has_results = self._has_results()
        if has_results or self._is_in_use():
            listed = "; ".join(f"{key}: {old!r} there, {new!r} now" for key, (old, new) in changed.items())
            raise RunFolderError(
                f"run folder {self.path} {'holds results' if has_results else 'is in use by a command'} of another "
                f"configuration ({listed}). Choose another folder with run_dir=<folder>, go back to the old settings, "
                f"or {'remove the folder' if has_results else 'wait until it has ended'}"
            )
        return True

    def _note(self, config: Config, keys: Sequence[tuple[str, str]]) -> None:
        """Keeps these settings, given by group and name, as they are now."""
        stored, now = self.config_values(), config_to_dict(config)
        changed = [(group, name) for group, name in keys if stored[group].get(name) != now[group][name]]
        if changed:
            for group, name in changed:
                stored[group][name] = now[group][name]
            write_text(self.path / "config.yaml", _to_yaml(stored))

    def _has_results(self) -> bool:
        """Whether any command left more than what says how it was called, and its log."""
        files = (path.relative_to(self.path) for path in self.path.rglob("*") if path.is_file())
        return any(
            len(file.parts) > 1 or not (file.name in RECORDS or file.suffix == ".log" or file.name.startswith("."))
            for file in files
        )

    def _is_in_use(self) -> bool:
        with open(self.path / "config.yaml", "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError:  # a disk without locks
                return False
        return False

    def _record_environment(self, config: Config) -> None:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            return  # one of several processes of the same command
        known = self.read_json("environment.json") if (self.path / "environment.json").exists() else []
        self.write_json("environment.json", [*known, describe_environment(config)])


def _comparable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what may differ when a run goes on; of the weights file only the name counts, as folders move."""
    plain: dict[str, Any] = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for key in FREE_KEYS:
        group, _, name = key.rpartition(".")
        (plain.get(group, {}) if group else plain).pop(name, None)
    network = plain.get("network", {})
    if network.get("weights"):
        network["weights"] = Path(network["weights"]).name
    return plain


def _to_yaml(values: Any) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def describe_environment(config: Config) -> dict[str, Any]:
    """Where and with what a command runs, as plain values for JSON."""
    import torch  # here, because it takes seconds and commands that only read a folder do without

    cuda = torch.cuda.is_available() and config.trainer.accelerator != "cpu"
    revision = _git("rev-parse", "HEAD")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "working_directory": str(Path.cwd()),
        "seed": config.seed,
        "device": torch.cuda.get_device_name() if cuda else _cpu_name(),
        "threads": config.trainer.num_threads or torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "git_revision": revision,
        "git_dirty": None if revision is None else bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Output of git on the project's own files; None where there is no git or no repository."""
    folder = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
