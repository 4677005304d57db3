"""ONNX graphs, run by onnxruntime and by qonnx: the integer runtime's codes."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import qat
from hwmodel import uniform
from qat.errors import ExportError
from qat.export.runtime import IntegerRuntime
from qat.integer import IntegerNetwork, Rescale
from tests.qat.export.nets import OPS, random_images, random_network
from tests.qat.nets import NORMALIZATION, EveryOp, Residual, images, settle

onnx = pytest.importorskip("onnx", reason="extra 'onnx' is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="extra 'onnx' is not installed")

from qat.export.onnx_model import CODES, IMAGES, Dialect, save_onnx, to_onnx  # noqa: E402


def _by_onnxruntime(model: Any, batch: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    codes: list[NDArray[np.float32]] = session.run(None, {IMAGES: batch})
    return codes


def _expected(integers: IntegerNetwork, batch: NDArray[np.uint8]) -> list[NDArray[np.int32]]:
    codes = IntegerRuntime(integers).layer_codes(batch)
    return [codes[name] for name in integers.network.outputs]


def _assert_equal(found: list[NDArray[np.float32]], expected: list[NDArray[np.int32]]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours, theirs)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 2**32 - 1), st.lists(st.sampled_from(OPS), min_size=1, max_size=5), st.sampled_from(["plain", "qdq"])
)
def test_onnxruntime_gives_every_code_of_random_networks(seed: int, ops: list[str], dialect: str) -> None:
    integers = random_network(seed, ops)
    try:
        model = to_onnx(integers, Dialect(dialect))
    except ExportError:  # numbers that no trained network has; test_what_is_not_exact_is_refused has the messages
        return
    onnx.checker.check_model(model)
    batch = random_images(integers.network, 3, seed)
    _assert_equal(_by_onnxruntime(model, batch), _expected(integers, batch))


def _integers(model_type: type[torch.nn.Module], bits: int) -> IntegerNetwork:
    torch.manual_seed(0)
    model = settle(model_type())
    prepared = qat.prepare(model, uniform(qat.trace(model, (3, 16, 16)), bits, 4))
    prepared.calibrate([NORMALIZATION(images(32))])
    integers: IntegerNetwork = qat.deploy(prepared.eval(), NORMALIZATION).integers
    return integers


@pytest.mark.parametrize("model_type", [Residual, EveryOp])
@pytest.mark.parametrize("bits", [1, 3])
def test_qonnx_and_onnxruntime_agree_with_the_deployed_model(model_type: type[torch.nn.Module], bits: int) -> None:
    integers = _integers(model_type, bits)
    batch = images(4, seed=5).numpy()
    expected = _expected(integers, batch)
    assert np.unique(expected[0]).size > 8
    _assert_equal(_by_onnxruntime(to_onnx(integers), batch), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what qonnx's own imports warn of
        wrapper = pytest.importorskip("qonnx.core.modelwrapper", reason="extra 'onnx' is not installed")
        executor = pytest.importorskip("qonnx.core.onnx_exec")
        model = to_onnx(integers, Dialect.QONNX, batch=4)
        kinds = {node.op_type for node in model.graph.node}
        assert "Quant" in kinds and ("BipolarQuant" in kinds) == (bits == 1)
        codes = executor.execute_onnx(wrapper.ModelWrapper(model), {IMAGES: batch})[CODES]
    _assert_equal([codes], expected)


def test_qdq_holds_integers_and_plain_reads_from_disk(tmp_path: Path) -> None:
    integers = _integers(Residual, 4)
    kinds = [node.op_type for node in to_onnx(integers).graph.node]
    assert kinds.count("QuantizeLinear") < kinds.count("DequantizeLinear")
    save_onnx(integers, tmp_path / "model.onnx", Dialect.PLAIN)
    model = onnx.load(tmp_path / "model.onnx")
    assert {"QuantizeLinear", "DequantizeLinear"}.isdisjoint(node.op_type for node in model.graph.node)
    batch = images(2).numpy()
    _assert_equal(_by_onnxruntime(model, batch), _expected(integers, batch))
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert '"linear"' in properties["ofm_scale"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bias_shift": 46}, "layer 'stem': its requantization is not exact in float64"),
        (
            {"weight": np.full((6, 3, 3, 3), 127, np.int8)},
            "layer 'stem': sums reach .* float32 is exact below 16777216",
        ),
    ],
)
def test_what_is_not_exact_is_refused(changes: dict[str, Any], message: str) -> None:
    integers = _integers(Residual, 8)
    stem = dataclasses.replace(integers.layers["stem"], **changes)
    if "weight" in changes:  # codes of 16 bits, so that sums leave float32
        wide = Rescale(np.array([30000], np.int16), 1, -(2**15), 2**15 - 1)
        stem = dataclasses.replace(stem, input_rescale=wide)
    changed = dataclasses.replace(integers, layers={**integers.layers, "stem": stem})
    with pytest.raises(ExportError, match=message):
        to_onnx(changed)
