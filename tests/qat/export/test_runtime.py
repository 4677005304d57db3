"""Integer inference against the formulas, and its refusals."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hwmodel.network import LayerSpec, NetworkSpec, Op
from hwmodel.precision import LayerConfig, NetworkConfig
from qat.errors import ExportError
from qat.export import runtime
from qat.export.runtime import IntegerRuntime, accumulator_bounds
from qat.integer import IntegerLayer, IntegerNetwork, Rescale
from tests.qat.export.nets import OPS, random_images, random_network, reference_codes


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32 - 1), st.lists(st.sampled_from(OPS), min_size=1, max_size=7))
@example(1, list(OPS))
@example(2, ["conv", "conv", "add", "max_pool", "concat", "depthwise", "subsample"])
def test_every_code_follows_the_formulas(seed: int, ops: list[str]) -> None:
    integers = random_network(seed, ops, with_head=bool(seed % 2))
    images = random_images(integers.network, 3, seed)
    reference = reference_codes(integers, images)
    codes = IntegerRuntime(integers).layer_codes(images)
    assert list(codes) == [spec.name for spec in integers.network.layers]
    for name, expected in reference.items():
        if name != "input":
            assert np.array_equal(codes[name], expected), name


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 4))
def test_the_bound_of_a_sum_is_reached_and_not_passed(seed: int, products: int, filters: int) -> None:
    """The image that has the largest code wherever the weight is positive, the smallest elsewhere."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(-128, 128, (filters, products, 1, 1)).astype(np.int8)
    spec = LayerSpec("fc", Op.LINEAR, ("input",), products, 1, 1, filters, 1, 1)
    rescale = Rescale(np.full(filters, 16384, np.int16), 15, -(2**15), 2**15 - 1)  # half the sum, clamped
    integers = IntegerNetwork(
        NetworkSpec("one", products, 1, 1, (spec,)),
        NetworkConfig((("fc", LayerConfig(8, 8)),)),
        {"fc": IntegerLayer("fc", rescale, weight, None, np.zeros(filters, np.int16))},
        np.tile(np.concatenate([np.full(128, -127), np.full(128, 127)]).astype(np.int16), (products, 1)),
    )
    images = np.where(weight > 0, 255, 0).astype(np.uint8)
    sums = np.abs(weight.astype(int)).sum((1, 2, 3)) * 127
    assert accumulator_bounds(integers)["fc"] == sums.max()
    assert np.array_equal(np.diag(IntegerRuntime(integers).run(images)), np.minimum((sums + 1) // 2, 2**15 - 1))


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    integers = random_network(7)
    images = random_images(integers.network, 9)
    whole = IntegerRuntime(integers)
    monkeypatch.setattr(runtime, "BATCH_BYTES", 1)
    one_by_one = IntegerRuntime(integers)
    for together, alone in zip(whole.run(images), one_by_one.run(images), strict=True):
        assert np.array_equal(together, alone)
    codes = one_by_one.layer_codes(images)
    assert all(np.array_equal(codes[name], expected) for name, expected in whole.layer_codes(images).items())


def test_run_gives_the_last_layer() -> None:
    integers = random_network(3, ["conv"], with_head=True)
    images = random_images(integers.network, 4)
    last = integers.network.layers[-1]
    codes = IntegerRuntime(integers).run(images)
    assert codes.dtype == np.int32
    assert codes.shape == (4, last.out_channels)
    assert np.array_equal(codes, reference_codes(integers, images)[last.name].reshape(4, -1))
    assert IntegerRuntime(integers).run(images[:0]).shape == (0, last.out_channels)


def test_other_images_are_refused() -> None:
    integers = random_network(3, ["conv"])
    images = random_images(integers.network, 1)
    with pytest.raises(ValueError, match="images are float32"):
        IntegerRuntime(integers).run(images.astype(np.float32))
    with pytest.raises(ValueError, match="expected uint8 of shape"):
        IntegerRuntime(integers).run(images[:, :, 1:])


def _linear(products: int, weight: int, code: int, config: LayerConfig) -> IntegerNetwork:
    """One linear layer whose input is always `code`."""
    spec = LayerSpec("fc", Op.LINEAR, ("input",), products, 1, 1, 1, 1, 1)
    rescale = Rescale(np.array([1], np.int16), 16, -(2**15), 2**15 - 1)
    wide = Rescale(np.array([32767], np.int16), 1, 0, code)
    layer = IntegerLayer(
        "fc", rescale, np.full((1, products, 1, 1), weight, np.int8), None, np.zeros(1, np.int16), 0, wide
    )
    return IntegerNetwork(
        NetworkSpec("wide", products, 1, 1, (spec,)),
        NetworkConfig((("fc", config),)),
        {"fc": layer},
        np.full((products, 256), 127, np.int16),
    )


@pytest.mark.parametrize("products", [131, 132, 600, 33000 // 2])
def test_sums_around_the_float_limits_are_exact(products: int) -> None:
    """Sums of 1023 * 127 * products: across 2**24, where float32 ends, up to just below int32."""
    integers = _linear(products, 127, 1023, LayerConfig(8, 16))
    total = products * 127 * 1023
    image = np.zeros((1, products, 1, 1), np.uint8)
    assert accumulator_bounds(integers)["fc"] == total
    assert IntegerRuntime(integers).run(image).tolist() == [[min((total + 2**15) >> 16, 2**15 - 1)]]


def test_an_accumulator_beyond_int32_is_refused() -> None:
    integers = _linear(17000, 127, 1023, LayerConfig(8, 16))
    with pytest.raises(ExportError, match=r"layer 'fc': the accumulator can reach 2208657000.*fewer weight or activ"):
        IntegerRuntime(integers)


def test_reading_and_running_need_numpy_only() -> None:
    """Nothing of the training side comes along with the packed model's reader."""
    code = (
        "import sys, qat.export.packed, qat.export.runtime\n"
        "from qat.export import load_packed\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'pytorch_lightning', 'scipy', 'sklearn')]\n"
        "bad += [m for m in sys.modules if m.startswith('qat.') and not m.startswith(('qat.export', 'qat.errors', "
        "'qat.integer'))]\n"
        "sys.exit(repr(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
