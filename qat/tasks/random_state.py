"""State of the random generators that a network may draw from in training, as tensors and plain values."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch


def random_state(device: torch.device) -> dict[str, Any]:
    """What Python's and torch's generators draw next, those of a GPU included if `device` is one."""
    state = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Goes on as when `random_state` was called; a GPU's generator stays as it is if the state was a CPU's."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
