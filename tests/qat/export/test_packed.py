"""The packed folder: round trip, and refusal of everything else."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwmodel import load_network
from hwmodel.dataflow import DataFlow, LayerSchedule, Schedule, WeightPlace
from hwmodel.precision import LayerConfig, NetworkConfig, WeightFormat
from hwmodel.storage import weight_storage
from qat.errors import ExportError, PackedFormatError
from qat.export import load_packed, save_packed
from qat.export.manifest import MANIFEST, manifest_bytes
from qat.export.packed import WEIGHTS, PackedModel, pack
from qat.integer import IntegerNetwork
from tests.qat.export.nets import OPS, random_images, random_layer, random_network, reference_codes


def _schedule(integers: IntegerNetwork, seed: int) -> Schedule:
    rng = np.random.default_rng(seed)
    layers = [
        LayerSchedule(
            spec.name,
            DataFlow.ROW_PIXEL,
            int(rng.integers(1, 5)),
            int(rng.integers(1, 8)),
            weight_place=WeightPlace.BRAM if spec.has_weights else WeightPlace.NONE,
        )
        for spec in integers.network.layers
    ]
    return Schedule(integers.network.name, tuple(layers))


def _assert_same(loaded: PackedModel, integers: IntegerNetwork) -> None:
    assert loaded.network == integers.network
    assert loaded.config == integers.config
    assert loaded.class_names == integers.class_names
    assert np.array_equal(loaded.integers.input_codes, integers.input_codes)
    for name, layer in integers.layers.items():
        other = loaded.integers.layers[name]
        assert (other.name, other.bias_shift, other.ofm_scale) == (layer.name, layer.bias_shift, layer.ofm_scale)
        for array in ("weight", "mask", "bias"):
            assert np.array_equal(getattr(other, array), getattr(layer, array)), (name, array)
        assert (layer.table is None) == (other.table is None)
        if layer.table is not None and other.table is not None:
            assert np.array_equal(layer.table.codes, other.table.codes)
            for field in ("first_code", "quant_min", "quant_max"):
                assert getattr(layer.table, field) == getattr(other.table, field)
        for rescale in ("rescale", "input_rescale"):
            ours, theirs = getattr(layer, rescale), getattr(other, rescale)
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert np.array_equal(ours.multiplier, theirs.multiplier)
                assert ours.negative_shift == theirs.negative_shift
                assert (ours.shift, ours.quant_min, ours.quant_max) == (
                    theirs.shift,
                    theirs.quant_min,
                    theirs.quant_max,
                )


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), ops=st.lists(st.sampled_from(OPS), min_size=1, max_size=5))
def test_everything_comes_back(tmp_path_factory: pytest.TempPathFactory, seed: int, ops: list[str]) -> None:
    integers = random_network(seed, ops)
    folder = tmp_path_factory.mktemp("packed") / "model"
    saved = save_packed(integers, folder, _schedule(integers, seed) if seed % 2 else None, {"note": ["ä", 1.5]})
    loaded = load_packed(folder)
    _assert_same(loaded, integers)
    assert loaded.extra == {"note": ["ä", 1.5]}
    assert loaded.stored_bits == saved.stored_bits == sum(loaded.stored_bits_by_stream.values())
    images = random_images(integers.network, 2)
    found, expected = loaded.run(images), reference_codes(integers, images)
    for codes, name in zip(found if isinstance(found, tuple) else (found,), integers.network.outputs, strict=True):
        assert np.array_equal(codes.reshape(-1), expected[name].reshape(-1))


def test_files_are_as_large_as_announced(tmp_path: Path) -> None:
    integers = random_network(11)
    model = save_packed(integers, tmp_path / "model")
    body = json.loads((tmp_path / "model" / MANIFEST).read_text())
    size = (tmp_path / "model" / WEIGHTS).stat().st_size
    streams = 1 + sum(len(layer.streams) for layer in model.packed_layers.values())
    assert body["stored_bits"] == model.stored_bits
    assert model.stored_bits <= 8 * size < model.stored_bits + 8 * streams
    own = [spec for spec in integers.network.weighted if spec.owns_weights]
    predicted = sum(weight_storage(spec, integers.config[spec.name]).value_bits for spec in own)
    bits = model.stored_bits_by_stream
    assert bits.get("weights", 0) + bits.get("values", 0) == predicted
    assert bits["input_codes"] == 8 * integers.input_codes.size


def test_a_packed_model_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    first, second = random_network(1, ["conv"]), random_network(2, ["conv"])
    folder = tmp_path / "model"
    save_packed(first, folder)
    save_packed(second, folder)
    _assert_same(load_packed(folder), second)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"holds files beside a packed model, \['notes.txt'\]"):
        save_packed(first, folder)
    other = tmp_path / "other"
    other.mkdir()
    (other / "a").write_text("b")
    with pytest.raises(ExportError, match="holds something that is not a packed model"):
        save_packed(first, other)
    with pytest.raises(ExportError, match="is not a folder"):
        save_packed(first, other / "a")
    _assert_same(load_packed(folder), second)


def test_a_failed_write_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = random_network(1, ["conv"]), random_network(2, ["conv"])
    save_packed(first, tmp_path / "model")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportError, match=r"model: the packed model could not be written .No space left"):
        save_packed(second, tmp_path / "model")
    _assert_same(load_packed(tmp_path / "model"), first)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_extra_that_is_not_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"extra=.*cannot be written as JSON"):
        save_packed(random_network(1, ["conv"]), tmp_path / "model", extra={"x": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small packed model with every kind of stream."""
    save_packed(random_network(21, ["conv", "add", "conv"]), tmp_path / "model")
    return tmp_path / "model"


def _flip_and_load(folder: Path, path: Path, places: Iterable[int]) -> None:
    data = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for place in places:
            file.seek(place // 8)
            file.write(bytes([data[place // 8] ^ 1 << place % 8]))
            with pytest.raises(PackedFormatError, match=path.name):
                load_packed(folder)
            file.seek(place // 8)
            file.write(data[place // 8 : place // 8 + 1])
    assert load_packed(folder)


def _files(folder: Path) -> list[Path]:
    save_packed(random_network(5, ["conv"], with_head=False), folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert {path.suffix for path in files} == {".bin", ".json", ".h", ".mem", ".coe"}
    return files


def test_flipped_bits_are_refused_with_the_files_name(tmp_path: Path) -> None:
    """In every file the first and last byte, and 200 random bits."""
    rng = np.random.default_rng(0)
    for path in _files(tmp_path / "model"):
        bits = 8 * path.stat().st_size
        places = {*range(8), *range(bits - 8, bits), *rng.integers(0, bits, 200).tolist()}
        _flip_and_load(tmp_path / "model", path, places)


@pytest.mark.slow
def test_every_flipped_bit_is_refused_with_the_files_name(tmp_path: Path) -> None:
    for path in _files(tmp_path / "model"):
        _flip_and_load(tmp_path / "model", path, range(8 * path.stat().st_size))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_random_flips_of_resnet20_are_refused(tmp_path: Path) -> None:
    """Bits drawn from all files together, each with its share."""
    network = load_network("resnet20")
    layer_config = LayerConfig(1, 4, 0.95, WeightFormat.BINARY_PLUS_SPARSE)
    config = NetworkConfig(tuple((spec.name, layer_config) for spec in network.weighted))
    rng = np.random.default_rng(0)
    layers = {spec.name: random_layer(rng, spec, layer_config if spec.has_weights else None) for spec in network.layers}
    codes = np.tile(np.arange(-128, 128, dtype=np.int16), (3, 1))
    folder = tmp_path / "model"
    save_packed(IntegerNetwork(network, config, layers, codes), folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    ends = np.cumsum([0, *(8 * path.stat().st_size for path in paths)])
    flips = np.sort(rng.integers(0, ends[-1], 10_000))
    for path, start, end in zip(paths, ends[:-1], ends[1:], strict=True):
        _flip_and_load(folder, path, (flips[(flips >= start) & (flips < end)] - start).tolist())


def test_truncated_missing_and_swapped_files_are_refused(folder: Path, tmp_path: Path) -> None:
    for name, what in ((WEIGHTS, "truncated"), (MANIFEST, "damaged")):
        for size in (0, 1, (folder / name).stat().st_size - 1):
            broken = shutil.copytree(folder, tmp_path / "copy")
            os.truncate(broken / name, size)
            with pytest.raises(PackedFormatError, match=f"{name}: {what}"):
                load_packed(broken)
            with (broken / name).open("wb") as file:
                file.write((folder / name).read_bytes() + b"\0")
            with pytest.raises(PackedFormatError, match=name):
                load_packed(broken)
            (broken / name).unlink()
            with pytest.raises(PackedFormatError, match=f"{name}: missing"):
                load_packed(broken)
            shutil.rmtree(broken)
    size = (folder / WEIGHTS).stat().st_size
    (folder / WEIGHTS).write_bytes(bytes(size))
    with pytest.raises(PackedFormatError, match=r"weights.bin: damaged or swapped"):
        load_packed(folder)
    with pytest.raises(PackedFormatError, match=r"nowhere/manifest.json: missing"):
        load_packed(tmp_path / "nowhere")


def _rewrite(folder: Path, change: dict[str, Any]) -> None:
    """A crafted manifest with a right checksum."""
    body = json.loads((folder / MANIFEST).read_text())
    del body["manifest_sha256"]
    text = manifest_bytes({**body, **change})
    (folder / MANIFEST).write_bytes(text)


def test_another_version_or_kind_is_refused(folder: Path) -> None:
    original = (folder / MANIFEST).read_bytes()
    for change, message in (
        ({"version": 2}, "version 2, written by a newer release; this one reads 1"),
        ({"version": 0}, "version 0, expected 1"),
        ({"version": None}, "version None, expected 1"),
        ({"format": "other"}, "not the manifest of a packed model"),
    ):
        (folder / MANIFEST).write_bytes(original)
        _rewrite(folder, change)
        with pytest.raises(PackedFormatError, match=f"manifest.json: {message}"):
            load_packed(folder)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "a/../../secret", "..", "a/b/c", "", "C:\\x", "link", "d/f"]
)
def test_a_manifest_cannot_reach_outside_its_folder(folder: Path, name: str) -> None:
    secret = folder.parent / "secret"
    secret.write_bytes(b"secret")
    (folder / "link").symlink_to(secret)
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "f").write_bytes(b"secret")
    (folder / "d").symlink_to(folder.parent / "elsewhere")
    body = json.loads((folder / MANIFEST).read_text())
    entry = {"size_bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    _rewrite(folder, {"files": {**body["files"], name: entry}})
    with pytest.raises(PackedFormatError, match=r"not a plain name|cannot be read|symbolic link"):
        load_packed(folder)


def test_pipes_are_refused(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    assert data
    with pytest.raises(PackedFormatError, match=r"weights.bin: not a regular file"):
        load_packed(folder)


def test_a_manifest_cannot_ask_for_memory_without_bound(tmp_path: Path) -> None:
    """A sparse layer without kept weights stores 4 bytes per filter, whatever its shape."""
    integers = random_network(1, [], with_head=True)
    folder = tmp_path / "model"
    save_packed(integers, folder)
    body = json.loads((folder / MANIFEST).read_text())
    body["config"]["layers"]["linear1"] |= {"sparsity": 1.0, "weight_format": "sparse", "granularity": "element"}
    side = 1 << 14
    body["network"] |= {"input_height": side, "input_width": side}
    flatten, linear = body["network"]["layers"]
    flatten |= {"in_height": side, "in_width": side, "out_channels": flatten["in_channels"] * side * side}
    linear["in_channels"] = flatten["out_channels"]
    streams = body["layers"][1]["streams"]
    for name in [name for name in streams if name.startswith("index") or name == "weights"]:
        del streams[name]
    streams = {"values": {"offset_bytes": 0, "bits": 0}, **{k: v for k, v in streams.items() if k != "values"}}
    body["layers"][1]["streams"] = streams
    body["layers"][1]["index"] = {"coding": "none", "parameter": 0}
    offset = body["input"]["streams"]["input_codes"]["bits"] // 8
    for stream in streams.values():
        stream["offset_bytes"] = offset
        offset += -(-stream["bits"] // 8)
    _rewrite(folder, {key: body[key] for key in ("network", "config", "layers")})
    with pytest.raises(PackedFormatError, match=r"manifest.json: the network has \d+ weights, at most"):
        load_packed(folder)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [path, *(p for key, item in value.items() for p in _paths(item, (*path, key)))]
    if isinstance(value, list):
        return [path, *(p for i, item in enumerate(value) for p in _paths(item, (*path, i)))]
    return [path]


NOTHING_SENSIBLE = st.sampled_from(
    [None, -1, 0, 1, 2, 3.5, 1 << 40, 10**30, "", "x", [], {}, [1, 2], True, 1e300, {"a": 1}, "conv", "rice", "sparse"]
)


@pytest.fixture(scope="module")
def crafted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A packed folder whose manifest may be overwritten, and the manifest's content."""
    folder = tmp_path_factory.mktemp("crafted") / "model"
    save_packed(random_network(21, ["conv", "add", "max_pool", "conv"]), folder)
    body = json.loads((folder / MANIFEST).read_text())
    del body["manifest_sha256"]
    return folder, body


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_crafted_manifest_loads_or_is_refused_cleanly(
    crafted: tuple[Path, dict[str, Any]], data: st.DataObject
) -> None:
    """Any value may be replaced or removed, the checksum made right: nothing but PackedFormatError may come."""
    folder, original = crafted
    body = copy.deepcopy(original)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from([p for p in _paths(body) if p]))
        parent = body
        for key in path[:-1]:
            parent = parent[key]
        if data.draw(st.booleans()) or isinstance(parent, list):
            parent[path[-1]] = data.draw(NOTHING_SENSIBLE)
        else:
            del parent[path[-1]]
    (folder / MANIFEST).write_bytes(manifest_bytes(body))
    try:
        load_packed(folder)
    except PackedFormatError as error:
        assert str(folder) in str(error)  # noqa: PT017


def test_stored_bits_agree_with_the_cost_model() -> None:
    """All payload bits are what hwmodel counts for weights, and beside it rescales of operations and the input."""
    integers = random_network(33, ["conv", "conv", "add"])
    model = pack(integers)
    for spec in integers.network.weighted:
        counted = weight_storage(spec, integers.config[spec.name])
        ours = model.stored_bits_by_layer[spec.name]
        extra = 24 if integers.layers[spec.name].input_rescale is not None else 0
        assert abs(ours - extra - counted.total_bits) <= 0.02 * counted.total_bits + 64
