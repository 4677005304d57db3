"""What the tests of training share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qat.tasks import Recipe, TrainingTask, evaluate, fit
from tests.qat.nets import NORMALIZATION
from tests.qat.tasks.stripes import CPU, OBJECTIVE, Quarters, Stripes


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A float network that tells the quarters apart."""
    torch.manual_seed(0)
    model = Quarters()
    fit(TrainingTask(model, NORMALIZATION, Recipe(learning_rate=1e-2), OBJECTIVE), Stripes(), CPU, steps=60)
    assert evaluate(model, Stripes().val_dataloader(), NORMALIZATION, OBJECTIVE)["accuracy"] > 0.95
    return model.eval()
