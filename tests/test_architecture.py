"""Imports point one way, and the rooms that must do without torch do.

Names of rooms are modules and packages directly below `qat` and `hwmodel`; one file is a room of its own (`SINGLE`).
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ALLOWED: dict[str, set[str]] = {
    # What a room of qat may import from qat; hwmodel is open to all of them.
    "__init__": {"convert", "deployment", "export", "graph"},
    "errors": set(),
    "files": {"errors"},
    "integer": set(),
    "integer_norm": {"integer"},
    "normalization": {"errors"},
    "checks": {"errors"},
    "image_settings": {"checks"},
    "config": {"checks", "errors", "image_settings"},
    "compose": {"config", "errors"},
    "runs": {"compose", "config", "errors", "files"},
    "inputs": {"config", "errors"},
    "cli": {"compose", "config", "errors", "inputs", "runs"},
    "masks": {"errors", "integer"},
    "sampling": set(),
    "quantizers": {"errors", "integer", "masks", "sampling"},
    "graph": {"errors"},
    "onnx_network": {"errors"},
    "integer_forward": set(),
    "layers": {"errors", "graph", "integer", "integer_forward", "masks", "quantizers"},
    "convert": {"errors", "graph", "integer", "layers", "masks", "quantizers"},
    "rounding": {"convert", "layers", "quantizers", "sampling"},
    "deployment": {
        "convert",
        "errors",
        "graph",
        "integer",
        "integer_norm",
        "layers",
        "masks",
        "normalization",
        "quantizers",
    },
    "exact": {"convert", "deployment", "normalization"},
    "models": {"config", "errors"},
    "data": {"config", "errors", "image_settings", "inputs", "normalization"},
    "tasks": {
        "convert",
        "data",
        "deployment",
        "errors",
        "exact",
        "files",
        "layers",
        "masks",
        "models",
        "normalization",
        "quantizers",
        "rounding",
    },
    "patterns": {"errors"},
    "uniform": {"config", "patterns"},
    "search": {"errors", "files", "patterns"},
    "export": {"errors", "files", "integer"},
    "report": {"errors", "files"},
    "export/lowering": {"convert", "deployment", "errors", "export", "integer", "normalization"},
}
SINGLE = "export/lowering"
"""The one file of `qat.export` that takes a torch model in; the others only know integers."""

TOP = {"costing", "pipeline"}
"""May import every room, and no room may import it."""

WITHOUT_TORCH = (
    "__init__",
    "errors",
    "files",
    "integer",
    "checks",
    "image_settings",
    "config",
    "compose",
    "runs",
    "inputs",
    "cli",
    "patterns",
    "uniform",
    "export",
    "report",
)
"""Rooms of qat that are imported without torch: integers are checked by code that has nothing of the training side."""


def imported(source: str, package: str) -> set[str]:
    """Rooms of `package` that a source file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError("relative import: import from the package's full name")
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names if node.module == package)
    return {parts[1] for name in names if len(parts := name.split(".")) > 1 and parts[0] == package}


def sources(package: str) -> list[tuple[str, Path]]:
    """(room, file) of all source files of a package."""
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        relative = path.relative_to(ROOT / package).with_suffix("")
        found.append((SINGLE if str(relative) == SINGLE else relative.parts[0], path))
    return found


def foreign_modules(statement: str, forbidden: tuple[str, ...]) -> list[str]:
    """Modules below `forbidden` that are loaded after a statement ran in a fresh interpreter."""
    code = f"import sys; {statement}\nprint(*sorted({{m.split('.')[0] for m in sys.modules}} & {set(forbidden)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def modules(package: str, rooms: tuple[str, ...]) -> list[str]:
    """Full names of all modules of some rooms."""
    names = []
    for room, path in sources(package):
        if room in rooms:
            parts = path.relative_to(ROOT).with_suffix("").parts
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def test_every_room_of_qat_is_listed() -> None:
    rooms = {room for room, _ in sources("qat")}
    assert rooms <= set(ALLOWED) | TOP, "a new room: say in ALLOWED what it may import"


@pytest.mark.parametrize(
    ("room", "path"), [pytest.param(*item, id=str(item[1].relative_to(ROOT))) for item in sources("qat")]
)
def test_imports_of_qat_point_one_way(room: str, path: Path) -> None:
    found = imported(path.read_text(encoding="utf-8"), "qat") - {room}
    if room in TOP:
        assert "cli" not in found
    else:
        assert found <= ALLOWED.get(room, set())


def test_allowed_imports_have_no_circle() -> None:
    order: list[str] = []
    rest = dict(ALLOWED)
    while rest:
        free = sorted(room for room, needs in rest.items() if needs <= set(order))
        assert free, f"rooms that import each other in a circle are among {sorted(rest)}"
        order += free
        rest = {room: needs for room, needs in rest.items() if room not in free}


@pytest.mark.parametrize("path", [path for _, path in sources("hwmodel")], ids=lambda path: path.name)
def test_hardware_model_imports_nothing_of_the_training_side(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    roots = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    roots |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert roots - set(sys.stdlib_module_names) <= {"hwmodel", "numpy", "scipy", "yaml"}


def test_hardware_model_loads_without_torch_and_qat() -> None:
    rooms = tuple(room for room, _ in sources("hwmodel"))
    statement = "import " + ", ".join(modules("hwmodel", rooms))
    assert foreign_modules(statement, ("torch", "qat", "pytorch_lightning", "hydra")) == []


def test_integer_side_loads_without_torch() -> None:
    statement = "import " + ", ".join(modules("qat", WITHOUT_TORCH))
    assert foreign_modules(statement, ("torch", "torchvision", "pytorch_lightning", "botorch")) == []


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.name)
def test_scripts_start_without_torch(script: Path) -> None:
    tree = ast.parse(script.read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module for node in top if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    assert names <= {"__future__", "sys", "qat.cli", "qat.config", "qat.runs"}


class TestOfTheTests:
    """The checks above find what they look for."""

    def test_loaded_modules_are_seen(self, tmp_path: Path) -> None:
        (tmp_path / "torch.py").write_text("")
        (tmp_path / "innocent.py").write_text("def f():\n    import torch\n\nf()\n")
        statement = f"sys.path.insert(0, {str(tmp_path)!r}); import innocent"
        assert foreign_modules(statement, ("torch", "qat")) == ["torch"]

    def test_failing_import_is_no_pass(self) -> None:
        with pytest.raises(AssertionError, match="No module named 'no_such_room'"):
            foreign_modules("import no_such_room", ("torch",))

    def test_every_form_of_import_is_seen(self) -> None:
        source = (
            "import qat.tasks.fit\nfrom qat.search.trial import Trial\nfrom qat import models\n"
            "def late():\n    import qat.report as r\nimport qatlib.data\n"
        )
        assert imported(source, "qat") == {"tasks", "search", "models", "report"}
        with pytest.raises(AssertionError, match="relative import"):
            imported("from . import errors", "qat")
        with pytest.raises(AssertionError, match="relative import"):
            imported("from ..errors import QatError", "qat")
