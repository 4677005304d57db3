"""From a network to what it is for."""

from __future__ import annotations

from torch import nn

from qat.models.ssd import Ssd
from qat.tasks.classification import Classification
from qat.tasks.detection import Detection
from qat.tasks.ssd import SsdDetection
from qat.tasks.training import Objective


def objective_of(model: nn.Module) -> Objective:
    """Detection if the network is an SSD or says what its maps mean in `heads`, else classification."""
    if isinstance(model, Ssd):
        return SsdDetection(model.float_part)
    return Detection.of(model) if getattr(model, "heads", ()) else Classification()
