"""Boards: the listed ones load, wrong files are refused by field."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from hwmodel import Board, BoardError, board_names, load_board, load_boards

# (bram18, uram, dsp, lut, ff): AMD product tables DS180/DS190 (7 series), DS890 (UltraScale), DS891 (Zynq
# UltraScale+), DS987 (K26), DS962 (Alveo).
DATA_SHEETS = {
    "vc707": (2060, 0, 2800, 303_600, 607_200),
    "zc706": (1090, 0, 900, 218_600, 437_200),
    "pynq_z2": (280, 0, 220, 53_200, 106_400),
    "ultra96_v2": (432, 0, 360, 70_560, 141_120),
    "zcu102": (1824, 0, 2520, 274_080, 548_160),
    "zcu104": (624, 96, 1728, 230_400, 460_800),
    "kv260": (288, 64, 1248, 117_120, 234_240),
    "kcu1500": (4320, 0, 5520, 663_360, 1_326_720),
    "u250": (5376, 1280, 12_288, 1_728_000, 3_456_000),
}


def test_listed_boards_are_the_data_sheets() -> None:
    assert set(board_names()) == set(DATA_SHEETS)
    for name, want in DATA_SHEETS.items():
        board = load_board(name)
        assert board.name == name
        assert (board.bram18, board.uram, board.dsp, board.lut, board.ff) == want


def test_every_lut_comes_with_two_flip_flops() -> None:
    assert all(board.ff == 2 * board.lut for board in load_boards())


def test_boards_come_smallest_first() -> None:
    sizes = [board.bram18 for board in load_boards()]
    assert sizes == sorted(sizes)


def write(tmp_path: Path, **changes: object) -> Path:
    data = {**asdict(load_board("pynq_z2")), **changes}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}), encoding="utf-8")
    return path


def test_own_board_from_one_file(tmp_path: Path) -> None:
    assert load_board(write(tmp_path, name="mine", dsp=7)).dsp == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dsp": None}, r"missing fields \['dsp'\]"),
        ({"bram36": 3}, r"unknown fields \['bram36'\]"),
        ({"lut": -1}, r"lut=-1, expected an integer >= 1"),
        ({"lut": 1.5}, r"lut=1.5, expected an integer >= 1"),
        ({"uram": True}, r"uram=True, expected an integer >= 0"),
        ({"family": "virtex2"}, r"family='virtex2', expected one of"),
        ({"source": ""}, r"source='', expected a text"),
    ],
)
def test_wrong_field_is_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(BoardError, match=message):
        load_board(write(tmp_path, **changes))


def test_unknown_board_names_the_listed_ones() -> None:
    with pytest.raises(BoardError, match=r"'vc708' is not listed; listed are .*vc707"):
        load_board("vc708")


def test_missing_or_damaged_file(tmp_path: Path) -> None:
    with pytest.raises(BoardError, match="cannot be read: No such file"):
        load_board(tmp_path / "none.yaml")
    damaged = tmp_path / "damaged.yaml"
    damaged.write_text("a: [1", encoding="utf-8")
    with pytest.raises(BoardError, match="is not YAML"):
        load_board(damaged)
    damaged.write_text("- 1", encoding="utf-8")
    with pytest.raises(BoardError, match="expected fields with values, found list"):
        load_board(damaged)


def test_board_is_frozen() -> None:
    assert isinstance(load_board("vc707"), Board)
    with pytest.raises(AttributeError):
        load_board("vc707").dsp = 1  # type: ignore[misc]
