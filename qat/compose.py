"""From files, command line and stored runs to one checked `Config`.

Hydra merges YAML and overrides into the schema of `qat.config`; what it lets through (`+key`, `~key`) is refused here.
Nothing is ever instantiated from a configuration (`_target_`).
"""

from __future__ import annotations

import difflib
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hwmodel.board import Board
from qat.config import BoardSettings, Config
from qat.errors import ConfigError

CONF_FOLDER = Path(__file__).resolve().parents[1] / "conf"
"""Where the listed choices of each group lie."""

GROUPS = {
    "experiment": "a whole job: sets the groups below so that they fit together",
    "network": "what is quantized: a network by import path (module:callable) and its trained weights",
    "data": "the images: data set, folder, batch size, augmentation, normalisation",
    "board": "the FPGA whose block RAM, DSP slices, LUTs, bandwidth and clock are the budget",
    "quant": "bit widths that are given: activations, additions, first and last layer",
    "search": "what each layer may become, how many trials, what a trial may spend, which budgets or front to reach",
    "trainer": "epochs, learning rate, distillation, precision, devices",
}
"""The groups of `conf/`, in words."""

PATHS = (("data", "root"), ("network", "weights"), ("network", "path"))
"""Settings that say where things lie: group and name."""


def register(header: str = "Mixed-precision networks for FPGAs.") -> None:
    """Makes the schema, and the text of `--help`, known to Hydra.

    Args:
        header: What `--help` says first.
    """
    store = ConfigStore.instance()
    store.store(name="config_schema", node=Config)
    store.store(name="described", group="hydra/help", node={"app_name": "qat-fpga", "template": _help_text(header)})


def _help_text(header: str) -> str:
    lines = []
    for group, words in GROUPS.items():
        choices = sorted(path.stem for path in (CONF_FOLDER / group).glob("*.yaml"))
        lines.append(f"  {group}: {words}\n      {', '.join(choices)}")
    return "\n".join(
        (
            header.strip().replace("$", "$$"),
            "\nChoices, as group=name:",
            *lines,
            "\nSingle values, as group.key=value; several runs with --multirun and group=name1,name2.",
            "run=<folder> uses the configuration of an earlier run; run_dir=<folder> names the folder of a new one.",
            "\nSettings:",
            *(line.replace("$", "$$") for line in _settings_help(Config, "")),
            "\nThe configuration that the given arguments make:\n",
            "$CONFIG",
            "\nFlags of Hydra: --hydra-help",
        )
    )


def _settings_help(schema: Any, path: str) -> Iterator[str]:
    """A line for each setting, wrapped: its key and what the schema's docstring says of it."""
    words, hints = _arguments(Board if schema is BoardSettings else schema), get_type_hints(schema)
    for field in fields(schema):
        key = f"{path}{field.name}"
        inner, is_list = _schema_of(hints[field.name])
        if inner is None or path:
            yield textwrap.fill(
                f"{key}: {words.get(field.name, '')}", 110, initial_indent="  ", subsequent_indent="      "
            )
        if inner is not None:
            yield from _settings_help(inner, f"{key}[]." if is_list else f"{key}.")


def _schema_of(hint: Any) -> tuple[Any, bool]:
    """The dataclass of a field's value, or of its list's elements, or None; and whether it is a list."""
    return next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None), get_origin(hint) is list


def _arguments(schema: type) -> dict[str, str]:
    """What a docstring's `Args:` say, by name."""
    section = (inspect.getdoc(schema) or "").partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.split(r"^    (\w+): ", section, flags=re.MULTILINE)[1:]
    return {name: " ".join(text.split()) for name, text in zip(entries[::2], entries[1::2], strict=True)}


def compose_config(overrides: Sequence[str] = (), root: str = "run") -> Config:
    """The configuration that a command line makes; for notebooks and tests.

    Args:
        overrides: As on the command line: `["experiment=digits_demo", "search.trials=8"]`.
        root: Which YAML of `conf/` to start from, without suffix.

    Raises:
        ConfigError: A choice or key is unknown, mistyped, missing or out of range.
    """
    register()
    check_keys(overrides)
    try:
        with initialize_config_dir(str(CONF_FOLDER), version_base="1.3"):
            composed = compose(root, list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        detail = f": {error.__cause__}" if error.__cause__ else ""
        raise ConfigError(f"{error}{detail}") from error
    return to_config(composed)


def check_keys(overrides: Sequence[str]) -> None:
    """Refuses overrides of settings that there are not, with the nearest one that there is.

    Args:
        overrides: As on the command line; what is no override, or none that can be read, is left to Hydra.

    Raises:
        ConfigError: A key is unknown; the message names the nearest one.
    """
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key.replace(".", "").isidentifier() and not key.startswith("hydra."):
            _check_key(key.split("."))


def _check_key(parts: Sequence[str]) -> None:
    schema: Any = Config
    for place, part in enumerate(parts):
        known = [field.name for field in fields(schema)]
        if part not in known and not (place == 0 and part in GROUPS):
            raise ConfigError(_unknown(".".join(parts[:place]), part, known if place else [*known, *GROUPS]))
        if part not in known:
            return
        schema, is_list = _schema_of(get_type_hints(schema)[part])
        if schema is None or is_list:
            return


def _unknown(path: str, key: str, known: Sequence[str]) -> str:
    """What is said about a key that `path` does not have."""
    prefix = f"{path}." if path else ""
    near = difflib.get_close_matches(key, known, 1)
    if near:
        return f"{prefix}{key} is not a setting; did you mean {prefix}{near[0]}?"
    there = f"{path} has" if path else "there are"
    return f"{prefix}{key} is not a setting; {there} {', '.join(dict.fromkeys(known))}"


def to_config(composed: DictConfig) -> Config:
    """Checks a composed configuration and makes its paths absolute.

    Args:
        composed: What Hydra composed, with `Config` as schema.

    Raises:
        ConfigError: A key is unknown, mistyped, missing or out of range; the message names it.
    """
    _refuse_unknown(composed, "")
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error)) from error
    if not isinstance(config, Config):
        raise ConfigError(f"expected a configuration with the schema Config, found {type(config).__name__}")
    for group, name in PATHS:
        settings = getattr(config, group)
        value = getattr(settings, name)
        setattr(settings, name, None if value is None else _absolute(value))
    config.run_dir = _absolute(config.run_dir)
    config.network.path = config.network.path or str(Path.cwd())
    return config


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def _refuse_unknown(node: object, path: str) -> None:
    """Refuses keys that a dataclass does not have: Hydra lets `+key=value` add them, and they would do nothing."""
    if isinstance(node, ListConfig) and not node._is_none():
        for index in range(len(node)):
            _refuse_unknown(node._get_node(index), f"{path}[{index}]")
    if not isinstance(node, DictConfig) or node._is_none():
        return
    schema = OmegaConf.get_type(node)
    if schema is None or not is_dataclass(schema):
        return
    known = [field.name for field in fields(schema)]
    prefix = f"{path}." if path else ""
    for key in map(str, node):
        if key not in known:
            raise ConfigError(_unknown(path, key, known))
    for key in known:
        if key not in node or OmegaConf.is_missing(node, key):
            raise ConfigError(f"{prefix}{key} has no value; give it with {prefix}{key}=...")
        _refuse_unknown(node._get_node(key), f"{prefix}{key}")


def config_from_dict(values: Mapping[str, Any], where: str) -> DictConfig:
    """A stored configuration under the schema.

    Args:
        values: What `config_to_dict` returned.
        where: What an error message calls the origin of `values`.

    Raises:
        ConfigError: It does not fit the schema: written by another version, or edited.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), _renamed(values))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where} does not fit this version: {error}") from error
    if not isinstance(merged, DictConfig):
        raise ConfigError(f"{where} holds no configuration")
    return merged


def _renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The stored configuration with the keys of now: `search.granularity`, one word, became `granularities`."""
    search = values.get("search")
    if not isinstance(search, Mapping):
        return dict(values)

    def listed(choices: Any) -> Any:
        if not isinstance(choices, Mapping) or "granularity" not in choices:
            return choices
        kept = {key: value for key, value in choices.items() if key != "granularity"}
        word = choices["granularity"]
        return kept | {"granularities": None if word is None else [word]}

    layers = search.get("layers")
    own = {"layers": [listed(choices) for choices in layers]} if isinstance(layers, Sequence) else {}
    return {**values, "search": {**listed(search), **own}}


def config_to_dict(config: Config) -> dict[str, Any]:
    """Plain values for YAML."""
    return asdict(config)


def apply_overrides(stored: DictConfig, composed: DictConfig, overrides: Sequence[str]) -> None:
    """Brings what was given on a command line into a stored configuration.

    Args:
        stored: Configuration of an earlier run; changed in place.
        composed: What Hydra made of the command line: the overrides are already parsed and typed there.
        overrides: The command line's overrides; `run` is passed over.

    Raises:
        ConfigError: An override cannot be applied to an earlier run.
    """
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if key == "run":
            continue
        if key in ("experiment", "run_dir", "name") or override.is_delete():
            raise ConfigError(f"{override.input_line} does not go with run=<folder>, which has its own; leave it out")
        OmegaConf.update(stored, key, OmegaConf.select(composed, key), merge=False, force_add=True)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two configurations as plain values: (before, after) by dotted key."""
    old, new = dict(_flat(before, "")), dict(_flat(after, ""))
    keys = [*old, *(key for key in new if key not in old)]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def _flat(values: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
