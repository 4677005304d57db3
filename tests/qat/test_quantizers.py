"""Quantizers: code ranges, exactness, gradients, starting steps."""

from __future__ import annotations

import copy
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import qat
from hwmodel import Granularity, LayerConfig, NetworkConfig, WeightFormat
from hwmodel.precision import group_shape, kept_groups
from qat.masks import pick_mask
from qat.quantizers import (
    CACHED_VALUES,
    ActQuantizer,
    ScaleRule,
    WeightQuantizer,
    _least_squares_scale,
    quant_range,
)
from tests.qat.nets import NORMALIZATION, Residual, images, settle


def _weight(shape: tuple[int, int, int, int] = (6, 5, 3, 3), seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


layer_configs = st.one_of(
    st.builds(LayerConfig, st.integers(1, 8), st.just(4)),
    st.builds(
        LayerConfig,
        st.integers(1, 8),
        st.just(4),
        st.floats(0, 1),
        st.just(WeightFormat.SPARSE),
        st.sampled_from(list(Granularity)),
    ),
    st.builds(
        LayerConfig,
        st.just(1),
        st.just(4),
        st.floats(0, 1),
        st.just(WeightFormat.BINARY_PLUS_SPARSE),
        st.sampled_from(list(Granularity)),
    ),
)


@settings(max_examples=60, deadline=None)
@given(config=layer_configs, seed=st.integers(0, 99))
def test_codes_times_steps_is_what_training_multiplies_by(config: LayerConfig, seed: int) -> None:
    weight = _weight(seed=seed)
    quantizer = WeightQuantizer(weight, config)
    codes = quantizer.codes(weight)
    assert codes.dtype == torch.int8
    torch.testing.assert_close(quantizer(weight), codes * quantizer.scale, rtol=1e-6, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(config=layer_configs, seed=st.integers(0, 99))
def test_codes_stay_in_their_domain(config: LayerConfig, seed: int) -> None:
    weight = _weight(seed=seed)
    quantizer = WeightQuantizer(weight, config)
    codes = quantizer.codes(weight).int()
    plane = None if quantizer.mask is None else quantizer.mask.expand(weight.shape)
    if config.weight_format is WeightFormat.BINARY_PLUS_SPARSE:
        assert plane is not None
        assert set(codes[~plane].unique().tolist()) <= {-16, 16}
        return
    allowed = {-1, 1} if config.weight_bit_width == 1 else None
    kept = codes if plane is None else codes[plane]
    if plane is not None:
        assert not codes[~plane].any()
    if allowed:
        assert set(kept.unique().tolist()) <= allowed
    elif kept.numel():
        quant_min, quant_max = quant_range(config.weight_bit_width, signed=True)
        assert quant_min <= int(kept.min()) and int(kept.max()) <= quant_max


@settings(max_examples=40, deadline=None)
@given(sparsity=st.floats(0, 1), granularity=st.sampled_from(list(Granularity)), seed=st.integers(0, 9))
def test_masks_keep_exactly_the_groups_that_the_cost_model_counts(
    sparsity: float, granularity: Granularity, seed: int
) -> None:
    for weight_format in (WeightFormat.SPARSE, WeightFormat.BINARY_PLUS_SPARSE):
        config = LayerConfig(1, 4, sparsity, weight_format, granularity)
        quantizer = WeightQuantizer(_weight(seed=seed), config)
        assert quantizer.mask is not None
        assert tuple(quantizer.mask.shape) == group_shape((6, 5, 3, 3), granularity)
        assert int(quantizer.mask.sum()) == kept_groups(quantizer.mask.numel(), sparsity)


def test_more_bits_mean_less_error() -> None:
    weight = _weight((16, 16, 3, 3))
    errors = []
    for bits in range(1, 9):
        quantizer = WeightQuantizer(weight, LayerConfig(bits, 4))
        errors.append(float((quantizer(weight) - weight).detach().square().mean()))
    assert errors == sorted(errors, reverse=True)
    # Least squares for a unit Gaussian: sign 1 - 2/pi = 0.363 (Max, 1960, table I); four levels at least 0.1175.
    assert errors[0] == pytest.approx(0.363, abs=0.03)
    assert 0.11 < errors[1] < 0.20


def test_significant_weights_reduce_the_error_of_signs() -> None:
    weight = _weight((16, 16, 3, 3))
    plain = WeightQuantizer(weight, LayerConfig(1, 4))
    mixed = WeightQuantizer(weight, LayerConfig(1, 4, 0.95, WeightFormat.BINARY_PLUS_SPARSE))
    assert (mixed(weight) - weight).square().mean() < 0.75 * (plain(weight) - weight).square().mean()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("signed", [False, True])
def test_activation_gradients_are_those_of_lsq(dtype: torch.dtype, signed: bool, compiled: bool) -> None:
    x = (torch.randn(4000, generator=torch.Generator().manual_seed(1)) * 2).to(dtype).requires_grad_()
    quantizer = ActQuantizer(4, signed)
    with torch.no_grad():
        quantizer.log2_scale.fill_(-2.0)
    grad = torch.randn(4000, generator=torch.Generator().manual_seed(2)).to(dtype)
    quantize = torch.compile(quantizer, fullgraph=True, backend="aot_eager") if compiled else quantizer
    quantize(x).backward(grad)
    # The definition, written out: Esser et al., eq. 2, 3 and 5, then the chain rule through 2**log2_scale.
    scale, quant_min, quant_max = 0.25, *quant_range(4, signed)
    steps = x.detach().double() / scale
    inside = (steps > quant_min) & (steps < quant_max)
    slope = torch.where(inside, steps.round() - steps, steps.clamp(quant_min, quant_max))
    expected = (grad.double() * slope).sum() / (4000 * quant_max) ** 0.5 * scale * 0.6931471805599453
    assert x.grad is not None and quantizer.log2_scale.grad is not None
    torch.testing.assert_close(x.grad.double(), grad.double() * inside)
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    assert float(quantizer.log2_scale.grad) == pytest.approx(float(expected), abs=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("slope", [1.0, 0.125])
@pytest.mark.parametrize("signed", [False, True])
def test_consuming_is_a_leaky_relu_and_the_quantizer(dtype: torch.dtype, slope: float, signed: bool) -> None:
    """The same values and gradients, bit for bit; in float32 no new memory for the result."""
    quantizer = ActQuantizer(4, signed)
    with torch.no_grad():
        quantizer.log2_scale.fill_(-2.1)
    grad = torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(2)).to(dtype)
    found = []
    for consume in (False, True):
        x = (torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(1)) * 2).to(dtype).requires_grad_()
        made = x + 0
        out = quantizer(made, slope, consume=True) if consume else quantizer(F.leaky_relu(made, slope))
        assert (out.data_ptr() == made.data_ptr()) == (consume and dtype == torch.float32)
        quantizer.log2_scale.grad = None
        out.backward(grad)
        found.append((out.detach(), x.grad, quantizer.log2_scale.grad))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


@settings(max_examples=10, deadline=None)
@given(
    bit_width=st.integers(1, 16),
    signed=st.booleans(),
    log2_scale=st.floats(-12, 2),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_compiled_activations_are_the_eager_ones(
    bit_width: int, signed: bool, log2_scale: float, dtype: torch.dtype
) -> None:
    """Bit for bit, halves between two codes and values beyond the range among them."""
    quantizer = ActQuantizer(bit_width, signed)
    with torch.no_grad():
        quantizer.log2_scale.fill_(log2_scale)
        halves = (torch.arange(-300, 300) / 2 * quantizer.scale).to(dtype).reshape(2, 3, 10, 10)
    compiled = torch.compile(quantizer, fullgraph=True, dynamic=False, backend="eager")
    for x in (halves, torch.randn(2, 3, 10, 10).to(dtype)):
        torch.testing.assert_close(compiled(x, 0.125), quantizer(x, 0.125), rtol=0, atol=0)
    torch.compiler.reset()


def test_what_made_the_consumed_values_must_not_need_them() -> None:
    out = ActQuantizer(4, False)(torch.ones(3, requires_grad=True).exp(), consume=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@settings(max_examples=30, deadline=None)
@given(config=layer_configs, seed=st.integers(0, 99))
def test_weight_gradients_are_those_of_lsq(config: LayerConfig, seed: int) -> None:
    """Esser et al., eq. 2 and 3, written out in double precision; signs and zeros pass the weight's gradient."""
    weight, grad = _weight(seed=seed).requires_grad_(), _weight(seed=seed + 100)
    quantizer = WeightQuantizer(weight, config)
    with torch.no_grad():
        quantizer.log2_scale.sub_(0.7)  # so that some weights lie beyond the range, and none on its ends
    quantizer(weight).backward(grad)
    scale = quantizer.scale.detach().double()
    codes = quantizer.codes(weight).double()
    rounded = torch.ones_like(codes, dtype=torch.bool) if quantizer.mask is None else quantizer.mask.expand(codes.shape)
    if config.stored_bit_width == 1:
        rounded = torch.zeros_like(rounded)
    quant_min, quant_max = quant_range(config.stored_bit_width, signed=True)
    steps = weight.detach().double() / scale
    inside = (steps > quant_min) & (steps < quant_max)
    slope = torch.where(rounded & inside, codes - steps, codes)
    expected = (grad.double() * slope).sum((1, 2, 3)) * scale.flatten() * 0.6931471805599453
    assert weight.grad is not None and quantizer.log2_scale.grad is not None
    torch.testing.assert_close(weight.grad.double(), grad.double() * (inside | ~rounded))
    torch.testing.assert_close(quantizer.log2_scale.grad.double(), expected, rtol=1e-4, atol=1e-4)


def test_weights_at_the_ends_of_the_range_still_learn() -> None:
    weight = torch.tensor([-8.0, 7.0, 7.5, -8.5, 3.0]).reshape(1, 5, 1, 1).requires_grad_()
    quantizer = WeightQuantizer(weight, LayerConfig(4, 4))
    with torch.no_grad():
        quantizer.log2_scale.zero_()
    quantizer(weight).sum().backward()
    assert weight.grad is not None and weight.grad.flatten().tolist() == [1, 1, 0, 0, 1]


def _compiled_and_eager(layer: LayerConfig, backend: str) -> None:
    """One training step of a small network both ways; compiled in one piece, or torch raises."""
    torch.manual_seed(0)
    model = settle(Residual())
    spec = qat.trace(model, (3, 16, 16))
    eager = qat.prepare(model, NetworkConfig(tuple((s.name, layer) for s in spec.weighted)))
    x_NCHW = NORMALIZATION(images(8))
    eager.calibrate([x_NCHW])
    other = copy.deepcopy(eager)
    compiled = torch.compile(other, fullgraph=True, backend=backend)
    outputs = []
    for step in (eager.train(), compiled.train()):
        y = step(x_NCHW)
        y.square().sum().backward()
        outputs.append(y.detach())
    torch.testing.assert_close(outputs[1], outputs[0])
    for (name, ours), found in zip(eager.named_parameters(), other.parameters(), strict=True):
        assert ours.grad is not None and found.grad is not None, name
        tolerance = 1e-3 * float(ours.grad.abs().max()) + 1e-5
        torch.testing.assert_close(found.grad, ours.grad, rtol=0, atol=tolerance, msg=name)


COMPILED = [
    LayerConfig(4, 4),
    LayerConfig(1, 4, 0.9, WeightFormat.BINARY_PLUS_SPARSE),
    LayerConfig(2, 4, 0.5, WeightFormat.SPARSE),
]


@pytest.mark.parametrize("layer", COMPILED, ids=str)
def test_training_is_one_graph(layer: LayerConfig) -> None:
    """No graph breaks, forward or backward; needs no compiler."""
    _compiled_and_eager(layer, "aot_eager")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("layer", COMPILED[:2], ids=str)
@pytest.mark.filterwarnings("default")  # of torch's own code, when it looks for compilers
def test_compiled_training_equals_eager(layer: LayerConfig) -> None:
    _compiled_and_eager(layer, "inductor")


def test_step_gradients_of_large_layers_are_summed_in_parts() -> None:
    weight, grad = _weight((40, 300, 3, 3)).requires_grad_(), _weight((40, 300, 3, 3), seed=1)
    assert weight.numel() > CACHED_VALUES
    quantizer = WeightQuantizer(weight, LayerConfig(1, 4))
    quantizer(weight).backward(grad)
    slope = (grad.double() * quantizer.codes(weight)).sum((1, 2, 3))
    expected = slope * quantizer.scale.detach().flatten() * math.log(2)
    assert quantizer.log2_scale.grad is not None
    torch.testing.assert_close(quantizer.log2_scale.grad.double(), expected, rtol=1e-4, atol=1e-4)


def test_activation_codes_are_integers_in_range() -> None:
    x = torch.randn(2, 3, 8, 8) * 3
    quantizer = ActQuantizer(3, signed=True)
    quantizer.fit_scale(x)
    codes = quantizer(x) / quantizer.scale
    torch.testing.assert_close(codes, codes.round())
    assert codes.round().min() >= -4 and codes.round().max() <= 3


def test_calibrated_step_is_near_the_best_of_a_fine_search() -> None:
    x = torch.randn(20000, generator=torch.Generator().manual_seed(3)).relu()
    quantizer = ActQuantizer(4, signed=False)
    quantizer.fit_scale(x)

    def error(scale: float) -> float:
        return float(((x / scale).round().clamp(0, 15) * scale - x).square().mean())

    best = min(error(0.01 + 0.001 * k) for k in range(500))
    assert error(float(quantizer.scale.detach())) <= 1.05 * best


@pytest.mark.parametrize("shape", [(128, 16, 32, 32), (32, 1024, 14, 14), (64, 2048, 7, 7)])
def test_calibration_looks_at_all_of_a_map(shape: tuple[int, ...]) -> None:
    """Its first column, mostly next to padding, is no sample of it."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(3))
    x[..., 0] /= 8
    x[0, 0, 0, 1] = 4.0  # far out, so that the largest value decides nothing
    whole, column = ActQuantizer(3, signed=False), ActQuantizer(3, signed=False)
    whole.fit_scale(x)
    column.fit_scale(torch.cat([x[..., 0].flatten(), x[0, 0, 0, 1:2]]))
    of_all = float(_least_squares_scale(x.reshape(1, -1), 0, 7, x.max().reshape(1)))
    assert float(whole.scale.detach()) == pytest.approx(of_all, rel=0.1)
    assert float(column.scale.detach()) < of_all / 4


def test_a_quantizer_of_zeros_has_a_finite_step() -> None:
    quantizer = ActQuantizer(4, signed=False)
    quantizer.fit_scale(torch.zeros(2, 3, 4, 4))
    assert torch.isfinite(quantizer.scale) and quantizer.scale > 0
    dead = WeightQuantizer(torch.zeros(2, 3, 1, 1), LayerConfig(4, 4))
    assert torch.isfinite(dead.scale).all() and not dead.codes(torch.zeros(2, 3, 1, 1)).any()


def test_pruned_weights_learn_and_may_be_picked_again() -> None:
    weight = _weight().requires_grad_()
    quantizer = WeightQuantizer(weight, LayerConfig(2, 4, 0.5, WeightFormat.SPARSE))
    quantizer(weight).sum().backward()
    assert weight.grad is not None and quantizer.mask is not None
    assert (weight.grad[~quantizer.mask] == 1).all()
    before = quantizer.mask.clone()
    with torch.no_grad():
        weight[~before] += 10.0
    quantizer.repick_mask(weight)
    assert int(quantizer.mask.sum()) == int(before.sum()) and not (quantizer.mask & before).any()


@pytest.mark.parametrize("weight_bits", [1, 2, 4, 8])
def test_a_filter_that_was_dropped_works_when_it_is_picked_again(weight_bits: int) -> None:
    weight = _weight() * 0.1
    quantizer = WeightQuantizer(weight, LayerConfig(weight_bits, 4, 0.5, WeightFormat.SPARSE, Granularity.FILTER))
    assert quantizer.mask is not None
    dropped = ~quantizer.mask.flatten()
    assert dropped.any() and not dropped.all()
    for progress in (0.0, 1.0):  # all are kept; then those that have grown
        grown = torch.where(dropped[:, None, None, None], weight * (1 + progress), weight).requires_grad_()
        quantizer.repick_mask(grown.detach(), progress=progress)
        assert quantizer.mask.flatten()[dropped].all()
        fresh = WeightQuantizer(weight, LayerConfig(weight_bits, 4))  # steps of the same weights, nothing dropped
        values = quantizer(grown)
        torch.testing.assert_close(values[dropped], fresh(grown)[dropped])
        values.square().sum().backward()
        assert grown.grad is not None and grown.grad[dropped].any()


@settings(max_examples=20, deadline=None)
@given(progress=st.floats(0, 1), sparsity=st.floats(0, 1), seed=st.integers(0, 9))
def test_gradual_masks_shrink_and_end_at_the_exact_density(progress: float, sparsity: float, seed: int) -> None:
    weight = _weight(seed=seed)
    quantizer = WeightQuantizer(weight, LayerConfig(4, 4, sparsity, WeightFormat.SPARSE))
    assert quantizer.mask is not None
    final = int(quantizer.mask.sum())
    quantizer.repick_mask(weight, progress=progress)
    between = int(quantizer.mask.sum())
    assert final <= between <= quantizer.mask.numel()
    quantizer.repick_mask(weight, progress=1.0)
    assert int(quantizer.mask.sum()) == final == kept_groups(quantizer.mask.numel(), sparsity)
    with pytest.raises(ValueError, match="progress=1.5, expected 0..1"):
        quantizer.repick_mask(weight, progress=1.5)


@pytest.mark.parametrize("weight_format", [WeightFormat.SPARSE, WeightFormat.BINARY_PLUS_SPARSE])
@pytest.mark.parametrize("granularity", list(Granularity))
def test_taylor_saliency_keeps_what_the_loss_misses_most(weight_format: WeightFormat, granularity: Granularity) -> None:
    """For a linear loss the first-order change is exact: no other group's change would cost more."""
    weight, gradient = _weight(seed=1), _weight(seed=2)
    config = LayerConfig(1, 4, 0.8, weight_format, granularity)
    kept = pick_mask(weight, config, gradient)
    changes = -weight
    if weight_format is WeightFormat.BINARY_PLUS_SPARSE:
        magnitude = weight.abs().flatten(1).mean(1)[:, None, None, None]
        changes = weight.sign() * magnitude - weight.clamp(-127 / 16 * magnitude, 127 / 16 * magnitude)
    dims = [axis for axis in range(4) if kept.shape[axis] != weight.shape[axis]]
    cost = changes * gradient
    cost = (cost.sum(dims, keepdim=True) if dims else cost).abs()
    assert cost[kept].min() >= cost[~kept].max()
    if granularity is Granularity.ELEMENT:
        assert not torch.equal(kept, pick_mask(weight, config))


def test_power_of_two_steps_are_powers_of_two_and_learn() -> None:
    weight = _weight().requires_grad_()
    quantizer = WeightQuantizer(weight, LayerConfig(4, 4), ScaleRule.POWER_OF_TWO)
    exponents = torch.log2(quantizer.scale.detach())
    assert torch.equal(exponents, exponents.round())
    assert (quantizer.log2_scale - exponents.flatten()).abs().max() <= 0.5
    quantizer(weight).square().sum().backward()
    assert quantizer.log2_scale.grad is not None and quantizer.log2_scale.grad.abs().min() > 0
    activations = ActQuantizer(4, signed=False, scale_rule=ScaleRule.POWER_OF_TWO)
    activations.fit_scale(torch.rand(1000))
    assert float(activations.scale.detach()) in (1 / 16, 1 / 8)
