"""The house: a floor imports only from the floors below it, and no module imports itself by a detour."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "pcls"

# From the ground up. The rooms are `training`, `evaluation` and `compression` because `pcls.train`, `pcls.evaluate` and
# `pcls.compress` are functions.
# The roof is pcls/__init__.py: it offers what the floors hold, and the command line is one more face of it.
ROOF = "the roof"
FLOORS = [
    {"atomic", "errors"},
    {"checkpoint", "config", "nn", "observe", "parallel"},
    {"data", "models"},
    {"evaluation", "pretrained", "training"},
    {"planning", "run"},
    {"compression", "deliver", "launch", "transfer"},
    {ROOF},
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# A function lives with the concept that it serves, never in one of these.
GRAB_BAGS = {"common", "helper", "helpers", "misc", "util", "utils"}


def module_name(file: Path, package: Path) -> str:
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    _, *inner = module.split(".")
    return inner[0] if inner else ROOF


def imported_names(tree: ast.AST, package: str) -> Iterator[str]:
    """Every dotted name that a file imports, in functions and under TYPE_CHECKING too. `package` resolves dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))


def read_imports(package: Path) -> dict[str, set[str]]:
    """module -> the modules of the package that it imports, each named as its file is."""
    files = {module_name(file, package): file for file in sorted(package.rglob("*.py"))}

    def nearest_module(name: str) -> str:
        while name not in files:  # `from pcls.nn.conv import Conv` names something inside pcls.nn.conv
            name = name.rpartition(".")[0]
        return name

    imports: dict[str, set[str]] = {}
    for module, file in files.items():
        inside = module if file.name == "__init__.py" else module.rpartition(".")[0]
        names = imported_names(ast.parse(file.read_text()), inside)
        imports[module] = {nearest_module(name) for name in names if name.split(".")[0] == package.name}
    return imports


def breaches(imports: dict[str, set[str]]) -> list[str]:
    """Imports that do not lead down, each as 'importer -> imported'."""
    return [
        f"{module} -> {imported}"
        for module, targets in imports.items()
        for imported in sorted(targets)
        if room_of(module) != room_of(imported) and FLOOR_OF[room_of(imported)] >= FLOOR_OF[room_of(module)]
    ]


def circle(imports: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_room_is_in_the_plan():
    assert {room_of(module) for module in read_imports(PACKAGE)} <= set(FLOOR_OF)


def test_a_floor_imports_only_from_lower_floors():
    found = breaches(read_imports(PACKAGE))
    assert not found, "\n".join(found)


def test_no_module_imports_itself_by_a_detour():
    found = circle(read_imports(PACKAGE))
    assert not found, " -> ".join(found)


def test_no_module_is_a_grab_bag():
    assert [m for m in read_imports(PACKAGE) if GRAB_BAGS & set(m.split("."))] == []


@pytest.fixture
def house(tmp_path):
    """Builds a small pcls from {file: source} and reads its imports."""

    def build(files: dict[str, str]) -> dict[str, set[str]]:
        for name, source in {"__init__.py": "", **files}.items():
            file = tmp_path / "pcls" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
        return read_imports(tmp_path / "pcls")

    return build


@pytest.mark.parametrize(
    "source",
    [
        "import pcls.training.step",
        "from pcls.training import step",
        "from pcls.training.step import train_step",
        "from pcls import training",
        "from ..training import step",
        "def late():\n    from pcls.training.step import train_step",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pcls.training.step",
        "import importlib\nimportlib.import_module('pcls.training.step')",
    ],
)
def test_an_import_that_leads_up_is_found_however_it_is_written(house, source):
    imports = house({"nn/__init__.py": "", "nn/conv.py": source, "training/__init__.py": "", "training/step.py": ""})
    assert len(breaches(imports)) == 1
    assert breaches(imports)[0].startswith("pcls.nn.conv -> pcls.training")


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("models/resnet.py", "import pcls.data"),  # the room next door
        ("run/train.py", "import pcls.cli"),
        ("__init__.py", "import pcls.cli"),
        ("run/train.py", "from pcls import train"),  # the roof
    ],
)
def test_rooms_next_door_the_command_line_and_the_roof_are_out_of_reach(house, importer, source):
    assert len(breaches(house({"data/__init__.py": "", "cli/__init__.py": "", importer: source}))) == 1


def test_the_roof_the_command_line_and_the_way_down_are_free(house):
    imports = house(
        {
            "__init__.py": "def train():\n    from pcls.run.train import train",
            "__main__.py": "from pcls.cli import main",
            "cli/__init__.py": "import pcls",
            "errors.py": "",
            "run/__init__.py": "from pcls.run.train import train",
            "run/train.py": "from ..errors import UserError\nimport jax",
        }
    )
    assert breaches(imports) == []
    assert circle(imports) == []
    assert imports["pcls.run.train"] == {"pcls.errors"}


def test_a_circle_is_found_when_one_half_hides_in_a_function(house):
    imports = house(
        {
            "nn/__init__.py": "",
            "nn/conv.py": "from pcls.nn.pool import pool",
            "nn/pool.py": "def late():\n    from . import conv",
        }
    )
    assert set(circle(imports)) == {"pcls.nn.conv", "pcls.nn.pool"}
