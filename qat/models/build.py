"""From settings to a float network: one of ours, torchvision's, or one of the user's own."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from qat.config import NetworkSettings
from qat.errors import ConfigError, QatError

SHIPPED = ("qat.models", "torchvision.models")
"""Packages whose networks may be named from anywhere."""


def build_network(settings: NetworkSettings, seed: int) -> nn.Module:
    """The float network, with random weights.

    `settings.factory` names a class or function, `module:name`, that is called with `num_classes`.  It must be one of
    `qat.models` or `torchvision.models`, or lie in a file below `settings.path` (by default the current folder):
    nothing else is imported or called, so that a configuration cannot run arbitrary code.

    Args:
        settings: Which network.
        seed: Of the random weights.

    Raises:
        ConfigError: The factory is of another form or place, does not exist, fails, or returns no module.
    """
    factory = _find_factory(settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = factory(num_classes=settings.num_classes)
        except QatError:
            raise
        except Exception as error:  # whatever the user's code raises
            raise ConfigError(
                f"network.factory={settings.factory!r} could not be called with num_classes={settings.num_classes}: "
                f"{_described(error, inspect.getsourcefile(factory))}"
            ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"network.factory={settings.factory!r} returned {type(model).__name__}, expected a torch module"
        )
    return model


def _find_factory(settings: NetworkSettings) -> Callable[..., object]:
    module_name, colon, attribute = settings.factory.partition(":")
    parts = [*module_name.split("."), attribute]
    if not colon or not all(part.isidentifier() for part in parts):
        raise ConfigError(
            f"network.factory={settings.factory!r}, expected module:callable, such as qat.models:resnet20"
        )
    folder = Path(settings.path or ".").expanduser().resolve()
    module = _import(module_name, folder, settings.factory)
    factory: Callable[..., object] | None = getattr(module, attribute, None)
    is_network = inspect.isclass(factory) and issubclass(factory, nn.Module)
    if not is_network and not inspect.isfunction(factory):
        raise ConfigError(
            f"network.factory={settings.factory!r}: {module_name} has no torch module or function {attribute!r}"
        )
    assert factory is not None
    if not _is_allowed(factory, folder):
        raise ConfigError(
            f"network.factory={settings.factory!r} is defined in {inspect.getsourcefile(factory)}, expected a file "
            f"below {folder} or one of {list(SHIPPED)}; set network.path to the folder of your network"
        )
    return factory


def _import(name: str, folder: Path, factory: str) -> ModuleType:
    if name.startswith(SHIPPED):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(f"network.factory={factory!r}: {error}") from error
    relative = Path(*name.split("."))
    candidates = (folder / relative.with_suffix(".py"), folder / relative / "__init__.py")
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise ConfigError(
            f"network.factory={factory!r}: there is no {candidates[0]}, and {name} is not one of {list(SHIPPED)}; "
            "set network.path to the folder of your network"
        )
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever the user's file raises
        raise ConfigError(
            f"network.factory={factory!r}: {path} cannot be imported: {_described(error, str(path))}"
        ) from error
    finally:
        sys.path.remove(str(folder))


def _described(error: Exception, source: str | None) -> str:
    """The error's kind and message, behind the line of the user's file where it came up."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == source]
    where = f"{source}, line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {error}"


def _is_allowed(factory: Callable[..., object], folder: Path) -> bool:
    if (getattr(factory, "__module__", None) or "").startswith(SHIPPED):
        return True
    source = inspect.getsourcefile(factory)
    return source is not None and Path(source).resolve().is_relative_to(folder)
