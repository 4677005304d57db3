"""Writes layer tables: tracks shapes, so that a network reads like its paper."""

from __future__ import annotations

from hwmodel.network import INPUT, LayerSpec, NetworkSpec, Op

Shape = tuple[int, int, int]


class NetworkBuilder:
    """Collects layers; every method returns the name of the layer that it adds.

    Args:
        name: Name of the network.
        channels: Channels of its input.
        size: Rows and columns of its input.
    """

    def __init__(self, name: str, channels: int, size: int) -> None:
        self._name = name
        self._layers: list[LayerSpec] = []
        self._shapes: dict[str, Shape] = {INPUT: (channels, size, size)}

    def channels(self, tensor: str) -> int:
        """Channels of a tensor."""
        return self._shapes[tensor][0]

    def conv(
        self,
        name: str,
        source: str,
        out_channels: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        padding: int | None = None,
        groups: int = 1,
        activation: str = "relu",
        weights_of: str | None = None,
    ) -> str:
        """A square convolution, padded by half the kernel unless told otherwise."""
        pad = kernel // 2 if padding is None else padding
        return self._window(
            name,
            Op.CONV,
            source,
            out_channels,
            kernel,
            stride,
            pad,
            groups=groups,
            activation=activation,
            weights_of=weights_of,
        )

    def max_pool(self, name: str, source: str, kernel: int, stride: int, padding: int = 0) -> str:
        """Max pooling."""
        return self._window(name, Op.MAX_POOL, source, self.channels(source), kernel, stride, padding)

    def global_avg_pool(self, name: str, source: str) -> str:
        """Average over the whole map."""
        channels, size, _ = self._shapes[source]
        return self._window(name, Op.AVG_POOL, source, channels, size, size, 0)

    def linear(self, name: str, source: str, out_channels: int, *, activation: str = "none") -> str:
        """A fully connected layer; reads a flat tensor."""
        return self._add(name, Op.LINEAR, (source,), self._shapes[source], (out_channels, 1, 1), activation=activation)

    def flatten(self, name: str, source: str) -> str:
        """A map as one vector."""
        channels, rows, columns = self._shapes[source]
        return self._add(name, Op.FLATTEN, (source,), self._shapes[source], (channels * rows * columns, 1, 1))

    def add(self, name: str, first: str, second: str, *, activation: str = "relu") -> str:
        """Element-wise sum."""
        shape = self._shapes[first]
        return self._add(name, Op.ADD, (first, second), shape, shape, activation=activation)

    def lookup(self, name: str, source: str, activation: str) -> str:
        """A function of each code that no convolution can take over."""
        shape = self._shapes[source]
        return self._add(name, Op.LOOKUP, (source,), shape, shape, activation=activation)

    def concat(self, name: str, *sources: str) -> str:
        """Concatenation of channels."""
        _, rows, columns = self._shapes[sources[0]]
        shape = (sum(self.channels(source) for source in sources), rows, columns)
        return self._add(name, Op.CONCAT, sources, shape, shape)

    def upsample(self, name: str, source: str, factor: int) -> str:
        """Nearest-neighbour upsampling."""
        channels, rows, columns = self._shapes[source]
        shape = (channels, rows * factor, columns * factor)
        return self._add(name, Op.UPSAMPLE, (source,), self._shapes[source], shape, stride=(factor, factor))

    def reorg(self, name: str, source: str, factor: int) -> str:
        """Space to depth."""
        channels, rows, columns = self._shapes[source]
        shape = (channels * factor**2, rows // factor, columns // factor)
        return self._add(name, Op.REORG, (source,), self._shapes[source], shape, stride=(factor, factor))

    def subsample(self, name: str, source: str, out_channels: int, factor: int) -> str:
        """Every `factor`-th pixel, channels padded with zeros."""
        return self._window(name, Op.SUBSAMPLE, source, out_channels, 1, factor, 0)

    def build(self) -> NetworkSpec:
        """The network."""
        channels, rows, columns = self._shapes[INPUT]
        return NetworkSpec(self._name, channels, rows, columns, tuple(self._layers))

    def _window(
        self,
        name: str,
        op: Op,
        source: str,
        out_channels: int,
        kernel: int,
        stride: int,
        padding: int,
        *,
        groups: int = 1,
        activation: str = "none",
        weights_of: str | None = None,
    ) -> str:
        _, rows, columns = self._shapes[source]
        shape = (
            out_channels,
            (rows + 2 * padding - kernel) // stride + 1,
            (columns + 2 * padding - kernel) // stride + 1,
        )
        return self._add(
            name,
            op,
            (source,),
            self._shapes[source],
            shape,
            kernel_size=(kernel, kernel),
            stride=(stride, stride),
            padding=(padding, padding),
            groups=groups,
            activation=activation,
            weights_of=weights_of,
        )

    def _add(self, name: str, op: Op, inputs: tuple[str, ...], ifm: Shape, ofm: Shape, **geometry: object) -> str:
        layer = LayerSpec(name, op, inputs, *ifm, *ofm, **geometry)  # type: ignore[arg-type]
        self._layers.append(layer)
        self._shapes[name] = ofm
        return name
