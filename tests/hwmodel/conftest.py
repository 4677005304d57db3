"""Small networks for the tests of `hwmodel`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hwmodel import INPUT, LayerSpec, NetworkSpec, Op


def conv(
    name: str, source: str, channels: int, out_channels: int, size: int, kernel: int = 3, stride: int = 1
) -> LayerSpec:
    """A square convolution with half padding."""
    out = (size + 2 * (kernel // 2) - kernel) // stride + 1
    return LayerSpec(
        name,
        Op.CONV,
        (source,),
        channels,
        size,
        size,
        out_channels,
        out,
        out,
        (kernel, kernel),
        (stride, stride),
        (kernel // 2, kernel // 2),
        activation="relu",
    )


@pytest.fixture(scope="session")
def residual_network() -> NetworkSpec:
    """Two residual blocks (one with subsampled shortcut), pooling, concat, classifier."""
    layers = (
        conv("stem", INPUT, 3, 8, 16),
        conv("a1", "stem", 8, 8, 16),
        conv("a2", "a1", 8, 8, 16),
        LayerSpec("a_add", Op.ADD, ("a2", "stem"), 8, 16, 16, 8, 16, 16, activation="relu"),
        conv("b1", "a_add", 8, 16, 16, stride=2),
        conv("b2", "b1", 16, 16, 8),
        LayerSpec("b_short", Op.SUBSAMPLE, ("a_add",), 8, 16, 16, 16, 8, 8, stride=(2, 2)),
        LayerSpec("b_add", Op.ADD, ("b2", "b_short"), 16, 8, 8, 16, 8, 8, activation="relu"),
        conv("c1", "b_add", 16, 8, 8, kernel=1),
        LayerSpec("cat", Op.CONCAT, ("c1", "b_add"), 24, 8, 8, 24, 8, 8),
        LayerSpec("max", Op.MAX_POOL, ("cat",), 24, 8, 8, 24, 4, 4, (2, 2), (2, 2)),
        LayerSpec("avg", Op.AVG_POOL, ("max",), 24, 4, 4, 24, 1, 1, (4, 4), (4, 4)),
        LayerSpec("flat", Op.FLATTEN, ("avg",), 24, 1, 1, 24, 1, 1),
        LayerSpec("fc", Op.LINEAR, ("flat",), 24, 1, 1, 10, 1, 1),
    )
    return NetworkSpec("residual", 3, 16, 16, layers)


@pytest.fixture(scope="session")
def sharing_network() -> NetworkSpec:
    """Two maps and a head of two convolutions that serves both."""
    layers = (
        conv("stem", INPUT, 4, 8, 16),
        conv("down", "stem", 8, 8, 16, stride=2),
        conv("head1", "stem", 8, 8, 16),
        conv("head2", "head1", 8, 12, 16),
        replace(conv("head1.1", "down", 8, 8, 8), weights_of="head1"),
        replace(conv("head2.1", "head1.1", 8, 12, 8), weights_of="head2"),
    )
    return NetworkSpec("sharing", 4, 16, 16, layers)


@pytest.fixture(scope="session")
def normalizing_network() -> NetworkSpec:
    """Group norms, one of them beside a shortcut, and a division of pixels by their length."""

    def norm(name: str, op: Op, source: str, groups: int = 1) -> LayerSpec:
        return LayerSpec(name, op, (source,), 8, 16, 16, 8, 16, 16, groups=groups, activation="relu")

    layers = (
        conv("stem", INPUT, 3, 8, 16),
        norm("stem_norm", Op.GROUP_NORM, "stem", 4),
        conv("a1", "stem_norm", 8, 8, 16),
        norm("a1_norm", Op.GROUP_NORM, "a1", 2),
        LayerSpec("add", Op.ADD, ("a1_norm", "stem_norm"), 8, 16, 16, 8, 16, 16),
        norm("length", Op.L2_NORM, "add"),
        conv("last", "length", 8, 4, 16, kernel=1),
    )
    return NetworkSpec("normalizing", 3, 16, 16, layers)


@pytest.fixture(scope="session")
def small_networks(
    residual_network: NetworkSpec, sharing_network: NetworkSpec, normalizing_network: NetworkSpec
) -> tuple[NetworkSpec, ...]:
    """One with shortcuts, one with shared weights, one with normalisations."""
    return residual_network, sharing_network, normalizing_network


@pytest.fixture(scope="session")
def plain_network() -> NetworkSpec:
    """Three convolutions in a row."""
    layers = (conv("one", INPUT, 3, 16, 8), conv("two", "one", 16, 32, 8, stride=2), conv("three", "two", 32, 10, 4, 1))
    return NetworkSpec("plain", 3, 8, 8, layers)
