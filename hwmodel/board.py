"""What an FPGA board offers.  A board is one YAML file with exactly the fields of `Board`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from hwmodel.errors import BoardError

BOARD_FOLDER = Path(__file__).resolve().parents[1] / "conf" / "board"
"""Where the listed boards lie, one YAML file each."""

FAMILIES = ("7series", "ultrascale", "ultrascale_plus")
"""Device families: they differ in DSP slice, UltraRAM and LUT memories."""

MOST = 10**15
"""Largest number of a board: far above any device, and sums of costs stay within 64 bits."""

SLOWEST_BYTE_CYCLES = 4096
"""Most cycles that a byte may take from off chip, for the same reason."""


@dataclass(frozen=True)
class Board:
    """Resources of a board.

    Args:
        name: What reports call it; also the file name of a listed board.
        family: One of `FAMILIES`.
        bram18: Block RAMs of 18 Kibit (a RAMB36 counts as two).
        uram: UltraRAMs of 288 Kibit.
        dsp: DSP slices.
        lut: 6-input look-up tables.
        ff: Flip-flops.
        dram_bytes_per_s: Peak bandwidth of the memory beside the FPGA.
        clock_hz: Clock of the accelerator: an input of the model, not predicted by it.
        source: Data sheets of the numbers.

    Raises:
        BoardError: A field is out of range.
    """

    name: str
    family: str
    bram18: int
    uram: int
    dsp: int
    lut: int
    ff: int
    dram_bytes_per_s: int
    clock_hz: int
    source: str

    def __post_init__(self) -> None:
        for name in ("name", "source"):
            value = getattr(self, name)
            self._require(isinstance(value, str) and value != "", name, "a text that is not empty")
        self._require(self.family in FAMILIES, "family", f"one of {list(FAMILIES)}")
        for name, low in (("uram", 0), ("dsp", 0), *((n, 1) for n in ("bram18", "lut", "ff"))):
            self._require(_is_int(getattr(self, name)) and getattr(self, name) >= low, name, f"an integer >= {low}")
        for name in ("dram_bytes_per_s", "clock_hz"):
            self._require(_is_int(getattr(self, name)) and getattr(self, name) >= 1, name, "an integer >= 1")
        for name in ("bram18", "uram", "dsp", "lut", "ff", "dram_bytes_per_s", "clock_hz"):
            self._require(getattr(self, name) <= MOST, name, f"at most {MOST:,}")
        slowest = -(-self.clock_hz // SLOWEST_BYTE_CYCLES)
        expected = f"at least {slowest:,}, a byte in {SLOWEST_BYTE_CYCLES:,} cycles of clock_hz={self.clock_hz:,}"
        self._require(self.dram_bytes_per_s >= slowest, "dram_bytes_per_s", expected)

    def _require(self, ok: bool, name: str, expected: str) -> None:
        if not ok:
            raise BoardError(f"board {self.name!r}: {name}={getattr(self, name)!r}, expected {expected}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "board") -> Board:
        """A board from plain values.

        Args:
            data: Exactly the fields of `Board`.
            where: What an error message calls the origin of `data`.

        Raises:
            BoardError: A field is missing, unknown or out of range.
        """
        if not isinstance(data, Mapping):
            raise BoardError(f"{where}: expected fields with values, found {type(data).__name__}")
        known = [f.name for f in fields(cls)]
        missing = [name for name in known if name not in data]
        unknown = [str(name) for name in data if name not in known]
        if missing or unknown:
            raise BoardError(f"{where}: missing fields {missing}, unknown fields {unknown}; a board has {known}")
        return cls(**data)


class _Loader(yaml.SafeLoader):
    """Refuses a field that is given twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The fields of a mapping."""
        names = [str(key.value) for key, _ in node.value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise BoardError(f"{', '.join(twice)} given twice, expected each field once")
        return super().construct_mapping(node, deep)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def board_names() -> tuple[str, ...]:
    """Names of the listed boards, sorted."""
    return tuple(sorted(path.stem for path in BOARD_FOLDER.glob("*.yaml")))


def load_board(name_or_path: str | Path) -> Board:
    """Reads a board.

    Args:
        name_or_path: Name of a listed board, or path of a YAML file (anything that ends in .yaml or .yml).

    Raises:
        BoardError: There is no such board or file, or its content is not a board.
    """
    if not isinstance(name_or_path, str | Path):
        raise BoardError(f"board {name_or_path!r}: expected a name or the path of a .yaml file")
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = BOARD_FOLDER / f"{name_or_path}.yaml"
        if str(name_or_path) not in board_names():
            raise BoardError(
                f"board {str(name_or_path)!r} is not listed; listed are {list(board_names())}, "
                "or give the path of a .yaml file"
            )
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except BoardError as error:
        raise BoardError(f"board file {path}: {error}") from error
    except OSError as error:
        raise BoardError(f"board file {path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BoardError(f"board file {path}: is not YAML: {error}") from error
    return Board.from_dict(data, f"board file {path}")


def load_boards() -> tuple[Board, ...]:
    """All listed boards, smallest block RAM first."""
    return tuple(sorted(map(load_board, board_names()), key=lambda board: (board.bram18, board.uram, board.lut)))
