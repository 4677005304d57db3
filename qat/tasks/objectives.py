"""From a network to what it is for."""

from __future__ import annotations

from torch import nn

from qat.models.float_part import FloatPart
from qat.tasks.classification import Classification
from qat.tasks.detection import Detection
from qat.tasks.float_part import FloatPartDetection
from qat.tasks.training import Objective


def objective_of(model: nn.Module) -> Objective:
    """Detection if the network has a `float_part` or says what its maps mean in `heads`, else classification."""
    part = getattr(model, "float_part", None)
    if isinstance(part, FloatPart):
        return FloatPartDetection(part)
    return Detection.of(model) if getattr(model, "heads", ()) else Classification()
