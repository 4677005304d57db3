"""Float networks: shapes, published sizes, and where a network may come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from qat.config import NetworkSettings
from qat.errors import ConfigError
from qat.models import build_network, digits_resnet, resnet20, resnet56


def _settings(factory: str, path: Path | None = None) -> NetworkSettings:
    return NetworkSettings(
        name="net",
        factory=factory,
        path=None if path is None else str(path),
        num_classes=10,
        input_shape=[3, 32, 32],
        weights=None,
    )


@pytest.mark.parametrize(
    ("factory", "parameters"),
    [(resnet20, 269_722), (resnet56, 853_018)],
    ids=["resnet20", "resnet56"],
)
def test_published_size(factory, parameters: int) -> None:  # type: ignore[no-untyped-def]
    """0.27 and 0.85 million parameters: He et al., arXiv 1512.03385, table 6; shortcuts without weights (option A)."""
    model = factory()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_digits_network_reads_one_channel() -> None:
    assert digits_resnet().eval()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_the_seed_decides_the_weights() -> None:
    first, again = (build_network(_settings("qat.models:resnet20"), 3) for _ in range(2))
    other = build_network(_settings("qat.models:resnet20"), 4)
    assert torch.equal(first.conv1.weight, again.conv1.weight)  # type: ignore[union-attr, arg-type]
    assert not torch.equal(first.conv1.weight, other.conv1.weight)  # type: ignore[union-attr, arg-type]


def test_building_leaves_the_random_state_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    build_network(_settings("qat.models:resnet20"), 3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_torchvision_is_allowed() -> None:
    assert isinstance(build_network(_settings("torchvision.models:squeezenet1_1"), 0), nn.Module)


def test_a_users_own_file(tmp_path: Path) -> None:
    (tmp_path / "my_nets_a.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Linear):\n    def __init__(self, num_classes):\n"
        "        super().__init__(3, num_classes)\n\n\nVALUE = 3\n\n\ndef number(num_classes):\n    return 3\n\n\n"
        "def no_classes():\n    return nn.Linear(1, 1)\n"
    )
    model = build_network(_settings("my_nets_a:Net", tmp_path), 0)
    assert isinstance(model, nn.Linear)
    assert model.out_features == 10
    for name, reason in (
        ("Missing", "no torch module or function"),
        ("VALUE", "no torch module or function"),
        ("number", "expected a torch module"),
        ("no_classes", "could not be called"),
    ):
        with pytest.raises(ConfigError, match=reason):
            build_network(_settings(f"my_nets_a:{name}", tmp_path), 0)


@pytest.mark.parametrize(
    "factory", ["os:system", "builtins:eval", "subprocess:Popen", "torch.hub:load", "qat.models", "qat.models:1x", ":x"]
)
def test_nothing_else_is_called(factory: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"network\.factory"):
        build_network(_settings(factory, tmp_path), 0)


def test_what_a_users_file_imports_is_not_the_users(tmp_path: Path) -> None:
    (tmp_path / "my_nets_b.py").write_text("from subprocess import getoutput\n")
    with pytest.raises(ConfigError, match="expected a file below"):
        build_network(_settings("my_nets_b:getoutput", tmp_path), 0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("syntax", "import torch\ndef broken(:\n    pass\n", "line 2: SyntaxError: invalid syntax"),
        ("module", "import torch\n\nWIDTH = 1 / 0\n", "line 3: ZeroDivisionError: division by zero"),
        (
            "constructor",
            "def network(num_classes):\n    raise ValueError(f'{num_classes} classes are too few')\n",
            "could not be called with num_classes=10: .*line 2: ValueError: 10 classes are too few",
        ),
        ("argument", "def network():\n    return None\n", "TypeError: network.* unexpected keyword argument"),
    ],
)
def test_errors_of_a_users_file_have_their_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / f"my_nets_{name}.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        build_network(_settings(f"my_nets_{name}:network", tmp_path), 0)
    assert f"network.factory='my_nets_{name}:network'" in str(caught.value)
    assert name == "argument" or str(path) in str(caught.value)


def test_a_users_file_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "my_nets_c.py").write_text("import a_package_that_is_not_there\n")
    with pytest.raises(ConfigError, match="a_package_that_is_not_there"):
        build_network(_settings("my_nets_c:Net", tmp_path), 0)
