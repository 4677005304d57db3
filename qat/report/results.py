"""What a run found: one row per network that was trained in full, and the summary of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from qat.errors import RunFolderError


@dataclass(frozen=True)
class Result:
    """One network, trained in full and measured on test images.

    Args:
        name: Folder of the network below `networks/`, for example "mix_22.66x" or "uniform_w1".
        kind: "mix" for a configuration that the search found, "uniform" for the same precision in all layers.
        images: Test images.
        score: What is measured on them: a key of `SCORES`, or another name.
        float_score: Score of the float model, in [0, 1].
        quantized_score: The same for the network in the arithmetic of its last training steps.
        integer_score: The same for integer inference from the packed files; None before `verify`.
        lost: Images that only the float model gets right, and
        won: those that only the integers do (paired comparison); None before `verify`, and where an image is not
            simply right or wrong.
        differing_codes: Codes in which the packed files and the deployed model differ; None before `verify`.
        stored_bits: Everything stored.
        bits_per_weight: Stored bits per weight of the float model.
        compression: 32 bits per weight over everything stored.
        bound_compression: The same with indices at their entropy.
        bram18: Block RAMs used, and
        bram18_available: those of the board.
        offchip_bits: Off-chip traffic per frame, and
        baseline_offchip_bits: that of layer-by-layer execution.
        fps: Frames per second at the board's clock.
    """

    name: str
    kind: str
    images: int
    score: str
    float_score: float
    quantized_score: float
    integer_score: float | None
    lost: int | None
    won: int | None
    differing_codes: int | None
    stored_bits: int
    bits_per_weight: float
    compression: float
    bound_compression: float
    bram18: int
    bram18_available: int
    offchip_bits: int
    baseline_offchip_bits: int
    fps: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """Inverse of `to_dict`.

        Raises:
            RunFolderError: A field is unknown or missing.
        """
        names = {field.name for field in fields(cls)}
        if set(data) != names:
            raise RunFolderError(
                f"a result of another version: missing {sorted(names - set(data))}, "
                f"unknown {sorted(set(data) - names)}; search again"
            )
        return cls(**data)


SCORES = {"accuracy": "top-1", "ap50": "AP50"}
"""What readers call the scores."""

MEASURES = (
    ("float {score}", "float_score"),
    ("quantized {score}", "quantized_score"),
    ("integer {score}", "integer_score"),
    ("lost / won images", "paired"),
    ("differing codes", "differing_codes"),
    ("bits / weight", "bits_per_weight"),
    ("compression", "compression"),
    ("RAMB18", "bram18"),
    ("off-chip / frame", "offchip_bits"),
    ("off-chip layer by layer", "baseline_offchip_bits"),
    ("frames / s", "fps"),
)
"""Rows of the result table: heading, and what each shows."""


def score_name(results: Sequence[Result]) -> str:
    """What readers call the score of a run."""
    return SCORES.get(results[0].score, results[0].score) if results else "score"


def result_rows(results: Sequence[Result]) -> list[list[str]]:
    """Rows of text, the first with names: a column per network; for terminal, HTML and Markdown alike."""
    names = ["", *(result.name for result in results)]
    score = score_name(results)
    rows = ([heading.format(score=score), *(_cell(result, key) for result in results)] for heading, key in MEASURES)
    return [names, *rows]


def markdown(results: Sequence[Result]) -> str:
    """The result table in Markdown."""
    names, *rows = result_rows(results)
    lines = [names, ["---", *["---:"] * len(results)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(result: Result, key: str) -> str:
    if key == "paired" and result.lost is None:
        return "not verified" if result.integer_score is None else f"{result.images} images"
    if key == "paired":
        return f"{result.lost} / {result.won} of {result.images}"
    value = getattr(result, key)
    if value is None:
        return "not verified"
    if key.endswith("_score"):
        return f"{100 * value:.2f} %"
    if key.endswith("offchip_bits"):
        return f"{value / 8192:.1f} KiB"
    if key == "bram18":
        return f"{value} of {result.bram18_available}"
    if key == "compression":
        return f"{value:.2f}x"
    if key == "bits_per_weight":
        return f"{value:.3f}"
    if key == "fps":
        return f"{value:,.0f}"
    return str(value)
