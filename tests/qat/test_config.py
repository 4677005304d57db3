from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from qat.compose import (
    CONF_FOLDER,
    apply_overrides,
    compose_config,
    config_from_dict,
    config_to_dict,
    differences,
    to_config,
)
from qat.config import Config
from qat.errors import ConfigError
from qat.tasks import Recipe


@pytest.fixture(scope="module")
def _composed() -> Config:
    return compose_config()


@pytest.fixture
def values(_composed: Config) -> dict[str, Any]:
    return config_to_dict(_composed)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.epochss=1", "trainer.epochss"),
        ("+trainer.epoch=1", r"trainer\.epoch is not a setting; did you mean trainer\.epochs\?"),
        ("+foo=1", "foo is not a setting"),
        ("+trainer._target_=os.system", "trainer._target_ is not a setting"),
        ("network._target_=os.system", "network._target_"),
        ("~trainer.epochs", "trainer.epochs"),
        ("trainer.epochs=many", "'many' of type 'str' could not be converted to Integer"),
        ("trainer.epochs=null", "trainer.epochs"),
        ("seed=1.5", "seed"),
        ("data=cifar11", "Could not find 'data/cifar11'"),
        ("dta=cifar10", "dta"),
        ("search.layers=[{pattern: a, bits: 1}]", "bits"),
        ("search.layers=[{weight_bit_widths: [1]}]", r"search\.layers\[0\]\.pattern has no value"),
        ("search.granularity=kernel", "search.granularity"),
        ("network.name=???", r"network\.name has no value"),
        ("network.name=${no.such.key}", "no.such.key"),
    ],
)
def test_wrong_keys_and_types_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_config([override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name=''", "name='', expected a name for the run"),
        ("run_dir=''", "run_dir='', expected a folder"),
        ("seed=-1", "^seed=-1, expected an integer >= 0"),
        ("seed=4294967296", "^seed=4294967296, expected an integer >= 0 and <= 4294967295"),
        ("search.seed=4294967296", "search.seed=4294967296, expected an integer >= 0 and <= 4294967295"),
        ("trainer.devices=3", "data.batch_size=64, expected a multiple of trainer.devices=3"),
        ("baselines=[9]", "baselines=9, expected a number >= 1 and <= 8"),
        ("baselines=[2,2]", r"baselines=\[2, 2\], expected each value once"),
        ("network.num_classes=1", "network.num_classes=1, expected an integer >= 2"),
        ("network.input_shape=[8,8]", r"network.input_shape=\[8, 8\], expected \[channels, rows, columns\]"),
        ("network.input_shape=[3,8,8]", "data.mean=.*expected 3 values, one for each channel"),
        ("data.name=mnist", "data.name='mnist', expected one of"),
        ("data.source=archive", r"data.source='archive', expected one of \['bundled'\]"),
        ("data.test_images=null", "data.test_images=None, expected an integer >= 1"),
        ("data.batch_size=0", "data.batch_size=0, expected a number >= 1"),
        ("data.crop_padding=-1", "data.crop_padding=-1, expected a number >= 0"),
        ("data.std=[0]", r"data.std=\[0.0\], expected a value > 0"),
        ("board.bram18=0", "bram18=0, expected an integer >= 1"),
        ("board.family=6series", "family='6series', expected one of"),
        ("quant.act_bit_width=9", "quant.act_bit_width=9, expected 1..8 or 16"),
        ("quant.end_bit_width=0", "quant.end_bit_width=0, expected 1..8 or 16"),
        ("quant.layers=[{pattern: fc, act_bit_width: 12}]", r"quant.layers\[fc\].act_bit_width=12, expected 1..8"),
        ("search.trials=-1", "search.trials=-1, expected a number >= 0"),
        ("search.initial_trials=99", "search.initial_trials=99, expected at most search.trials="),
        ("search.weight_bit_widths=[0]", "search.weight_bit_widths=0, expected a number >= 1 and <= 8"),
        ("search.sparse_densities=[0.0]", "search.sparse_densities=0.0, expected a number > 0 and <= 1"),
        ("search.significant_densities=[.nan]", "search.significant_densities"),
        ("search.min_compression=[]", r"search.min_compression=\[\], expected at least one value"),
        ("search.front=[ofchip_bits]", r"search.front: 'ofchip_bits' is no cost column; did you mean offchip_bits\?"),
        ("search.front=[fps, bram18, lut]", "search.front=.*, expected one or two different cost columns"),
        ("search.front=[fits]", "search.front=.*, expected one or two different cost columns that are numbers"),
        ("search.front_networks=0", "search.front_networks=0, expected a number >= 1"),
        (
            "search.bounds=[{column: power, high: 3}]",
            "search.bounds: 'power' is no cost column; there are stored_bits, ",
        ),
        ("search.bounds=[{column: lut}]", r"search.bounds\[lut\]=None, expected low, high, or both"),
        ("search.bounds=[{column: lut, low: 2, high: 1}]", r"search.bounds\[lut\]=\[2.0, 1.0\], expected low <= high"),
        ("search.bounds=[{column: lut, low: .nan}]", r"search.bounds\[lut\]=\[nan, inf\], expected low <= high"),
        (
            "search.bounds=[{column: lut, low: 1}, {column: lut, high: 9}]",
            "search.bounds=.*, expected each column once",
        ),
        (
            "search.bounds=[{column: compression, low: 9}]",
            "search.bounds=.*, expected no compression beside search.min",
        ),
        ("search.act_bit_widths=[12]", "search.act_bit_widths=12, expected 1..8 or 16"),
        ("search.layers=[{pattern: fc, act_bit_widths: []}]", r"search.layers\[fc\].act_bit_widths=\[\], expected at"),
        ("search.density_levels=1", "search.density_levels=1, expected null or an integer >= 2"),
        ("search.granularities=[row]", r"search.granularities=\['row'\], expected at least one of \['element', "),
        ("search.granularities=[]", r"search.granularities=\[\], expected at least one of"),
        ("search.layers=[{pattern: fc, granularities: [row]}]", r"search.layers\[fc\].granularities=\['row'\], exp"),
        ("search.bram18=0", "search.bram18=0, expected null or an integer >= 1"),
        ("search.max_failed_share=1.5", "search.max_failed_share=1.5"),
        ("search.layers=[{pattern: fc, weight_bit_widths: [16]}]", r"search.layers\[fc\].weight_bit_widths=16"),
        ("trainer.precision=fp8", r"trainer.precision='fp8', expected one of \['32-true', 'bf16-mixed'\]"),
        ("trainer.learning_rate=nan", "trainer.learning_rate=nan, expected a number > 0"),
        ("trainer.learning_rate=0", "trainer.learning_rate=0.0, expected a number > 0"),
        ("trainer.exact_share=1.5", "trainer.exact_share=1.5, expected a number >= 0 and <= 1"),
        ("trainer.warmup_share=1", "trainer.warmup_share=1.0, expected a number >= 0 and < 1"),
        ("trainer.devices=0", "trainer.devices=0, expected a number >= 1"),
        ("trainer.num_threads=0", "trainer.num_threads=0, expected null or an integer >= 1"),
        ("trainer.epochs_per_validation=0", "trainer.epochs_per_validation=0, expected a number >= 1"),
    ],
)
def test_values_out_of_range_are_named(values: dict[str, Any], override: str, message: str) -> None:
    key, _, value = override.partition("=")
    changed = config_from_dict(values, "here")
    OmegaConf.update(changed, key, yaml.safe_load(value))
    with pytest.raises(ConfigError, match=message):
        to_config(changed)


def test_one_granularity_of_before_is_a_list_now(values: dict[str, Any]) -> None:
    del values["search"]["granularities"]
    values["search"]["granularity"] = "kernel"
    layer = dict.fromkeys(("weight_bit_widths", "significant_densities", "sparse_densities", "act_bit_widths"))
    values["search"]["layers"] = [
        {"pattern": "fc", "granularity": "filter", **layer},
        {"pattern": "conv1", "granularity": None, **layer},
    ]
    search = to_config(config_from_dict(values, "here")).search
    assert search.granularities == ["kernel"]
    assert [choices.granularities for choices in search.layers] == [["filter"], None]


def test_block_ram_is_bounded_once(values: dict[str, Any]) -> None:
    values["search"].update(bram18=100, bounds=[{"column": "bram18", "high": 90}])
    with pytest.raises(ConfigError, match="search.bounds=.*, expected no bram18 beside search.bram18"):
        to_config(config_from_dict(values, "here"))


def test_no_choice_at_all_is_refused(values: dict[str, Any]) -> None:
    none = {name: [] for name in ("weight_bit_widths", "significant_densities", "sparse_densities")}
    values["search"].update(none)
    with pytest.raises(ConfigError, match="search.weight_bit_widths"):
        to_config(config_from_dict(values, "here"))


def test_data_set_with_its_own_test_set_refuses_test_images() -> None:
    with pytest.raises(ConfigError, match="data.test_images=5, expected null"):
        compose_config(["experiment=cifar10_resnet20", "data.test_images=5"])
    with pytest.raises(ConfigError, match="data.root=None, expected a folder for cifar10"):
        compose_config(["experiment=cifar10_resnet20", "data.root=null", "network.weights=null"])


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Recipe)])
def test_whatever_the_recipe_refuses_is_refused_before(values: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"trainer.{name}="):
        Recipe(**{name: -1})
    values["trainer"][name] = -1
    with pytest.raises(ConfigError, match=f"trainer.{name}="):
        to_config(config_from_dict(values, "here"))


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = compose_config(["experiment=cifar10_resnet20", "data.root=images", "run_dir=out"])
    assert config.data.root == str(tmp_path / "images")
    assert config.network.weights == str(tmp_path / "images" / "weights" / "resnet20-12fca82f.th")
    assert config.run_dir == str(tmp_path / "out")


def test_seed_reaches_the_search() -> None:
    assert compose_config(["seed=7"]).search.seed == 7


def test_round_trip_through_plain_values() -> None:
    config = compose_config(["experiment=digits_demo", "search.layers=[{pattern: fc, weight_bit_widths: [8]}]"])
    assert to_config(config_from_dict(config_to_dict(config), "stored")) == config


def test_stored_configuration_of_another_version_is_refused(values: dict[str, Any]) -> None:
    values["trainer"]["momentum"] = 0.9
    with pytest.raises(ConfigError, match="config.yaml does not fit this version: Key 'momentum'"):
        config_from_dict(values, "config.yaml")
    del values["trainer"]["momentum"]
    del values["trainer"]["epochs"]
    with pytest.raises(ConfigError, match="trainer.epochs has no value"):
        to_config(config_from_dict(values, "config.yaml"))


def test_differences_by_dotted_key() -> None:
    before, after = (config_to_dict(compose_config(given)) for given in ([], ["trainer.epochs=3", "seed=4"]))
    changed = differences(before, after)
    assert set(changed) == {"trainer.epochs", "seed", "search.seed"}
    assert changed["seed"] == (0, 4)
    assert differences(before, before) == {}
    assert differences({"a": {}}, {"a": {"b": 1}}) == {"a": ({}, None), "a.b": (None, 1)}


def test_overrides_of_an_earlier_run() -> None:
    stored = config_from_dict(config_to_dict(compose_config(["experiment=cifar10_resnet20"])), "stored")
    given = ["run=somewhere", "data.root=/moved", "board=vc707", "trainer.num_threads=2", "search.min_compression=[8]"]
    composed = OmegaConf.merge(OmegaConf.structured(Config), config_to_dict(compose_config(given)))
    apply_overrides(stored, composed, given)
    config = to_config(stored)
    assert config.network.name == "resnet20"
    assert (config.data.name, config.data.root) == ("cifar10", "/moved")
    assert config.board.name == "vc707"
    assert config.trainer.num_threads == 2
    assert config.search.min_compression == [8.0]


@pytest.mark.parametrize("override", ["experiment=digits_demo", "run_dir=x", "name=y", "~trainer.epochs"])
def test_overrides_that_an_earlier_run_refuses(override: str) -> None:
    stored = config_from_dict(config_to_dict(compose_config()), "stored")
    with pytest.raises(ConfigError, match="does not go with run=<folder>"):
        apply_overrides(stored, stored, [override])


def test_nothing_in_conf_names_code_to_instantiate() -> None:
    files = list(CONF_FOLDER.rglob("*.yaml"))
    assert files
    assert not [path for path in files if "_target_" in path.read_text(encoding="utf-8")]
