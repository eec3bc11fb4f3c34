"""No file may run data as code: no pickle, no eval, no unsafe YAML, no shell, no name imported from data.

The same walk keeps out private modules of the libraries below, `pmap`, and peers inside the package.
"""

import ast
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
FOLDERS = ["pcls", "configs", "launch", "benchmarks", "tests"]

# Modules that unpickle, by themselves or underneath.
PICKLERS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}

FORBIDDEN = {
    *("eval", "exec", "compile", "__import__"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all"),
    *("yaml.Loader", "yaml.CLoader", "yaml.FullLoader", "yaml.CFullLoader", "yaml.UnsafeLoader", "yaml.CUnsafeLoader"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell"),
    *("torch.load", "torch.save"),  # pickle underneath: weights travel as safetensors
    "jax.pmap",
}
MUST_BE_FALSE = {"allow_pickle", "shell"}

# What pcls is compared with. Tests and benchmarks may import it, the package never.
PEERS = {"keras", "tensorflow", "timm", "torch", "torchvision"}


def without_builtins(name: str) -> str:
    return name.removeprefix("builtins.")


def is_false(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def imported_as(tree: ast.AST) -> dict[str, str]:
    """local name -> the dotted name that it stands for, from every import in the file."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                # `import os.path` binds `os`; `import os.path as p` binds all of it.
                root = alias.name.split(".")[0]
                names[alias.asname or root] = alias.name if alias.asname else root
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = without_builtins(f"{node.module}.{alias.name}")
    return names


def dotted_name(node: ast.AST, names: dict[str, str]) -> str:
    """`j.pmap` after `import jax as j` is "jax.pmap"; "" for what is no plain name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (owner := dotted_name(node.value, names)):
        return without_builtins(f"{owner}.{node.attr}")
    return ""


def imported_modules(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def is_forbidden_import(name: str) -> bool:
    parts = without_builtins(name).split(".")
    return parts[0] in PICKLERS or "_src" in parts or ".".join(parts) in FORBIDDEN


def call_breaches(call: ast.Call, names: dict[str, str]) -> list[str]:
    """What only the arguments of a call give away."""
    function = dotted_name(call.func, names)
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    found = [
        f"{keyword.arg}={ast.unparse(keyword.value)}"
        for keyword in call.keywords
        if keyword.arg in MUST_BE_FALSE and not is_false(keyword.value)
    ]
    if function == "importlib.import_module" and not isinstance(arguments[0], ast.Constant):
        found.append("import_module of a name that is not written in the code")
    if function == "yaml.compose" and not any(dotted_name(a, names).endswith("SafeLoader") for a in arguments):
        found.append("yaml.compose without SafeLoader")
    return found


def audit(source: str) -> list[str]:
    """What a file does that no file may do, each as 'line: what' or 'import: name'."""
    tree = ast.parse(source)
    names = imported_as(tree)
    found = [f"import: {name}" for name in sorted(imported_modules(tree)) if is_forbidden_import(name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            name = dotted_name(node, names)
            if name in FORBIDDEN or "_src" in name.split("."):
                found.append(f"{node.lineno}: {name}")
        elif isinstance(node, ast.Call):
            found += [f"{node.lineno}: {what}" for what in call_breaches(node, names)]
    return found


def python_files(*folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((REPO / folder).rglob("*.py"))]


def test_no_file_runs_data_as_code():
    audited = {str(file.relative_to(REPO)): audit(file.read_text()) for file in python_files(*FOLDERS)}
    assert Path(__file__).relative_to(REPO).as_posix() in audited, "the audit did not even find itself"
    found = [f"{file}:{what}" for file, whats in audited.items() for what in whats]
    assert not found, "\n".join(found)


def test_the_package_imports_no_peer():
    imported = {file.name: imported_modules(ast.parse(file.read_text())) for file in python_files("pcls")}
    assert [(file, name) for file, names in imported.items() for name in names if name.split(".")[0] in PEERS] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "import cloudpickle",
        "import dill",
        "import joblib",
        "from joblib import load",
        "import marshal",
        "import shelve",
        "def late():\n    import pickle",
        "eval('1')",
        "exec('1')",
        "compile('1', '', 'eval')",
        "run = eval",
        "import builtins\nbuiltins.exec('1')",
        "from builtins import exec as run\nrun('1')",
        "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
        "import yaml\nyaml.unsafe_load(text)",
        "import yaml\nyaml.full_load(text)",
        "import yaml as y\ny.load_all(text)",
        "from yaml import load",
        "from yaml import FullLoader",
        "import yaml\nyaml.compose(text)",
        "import yaml\nyaml.compose(text, Loader=yaml.Loader)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "from subprocess import run\nrun('ls', shell=flag)",
        "import subprocess\nsubprocess.getoutput('ls')",
        "import os\nos.system('ls')",
        "from os import popen",
        "import numpy\nnumpy.load(file, allow_pickle=True)",
        "import importlib\nimportlib.import_module(name)",
        "from importlib import import_module as load\nload(name)",
        "import importlib\nimportlib.import_module(name=name)",
        "__import__(name)",
        "import torch\ntorch.load(file)",
        "from jax._src import core",
        "from jax import _src",
        "import jax\njax._src.core",
        "import orbax.checkpoint._src.handlers",
        "from grain._src.python import options",
        "import jax\njax.pmap(f)",
        "from jax import pmap",
    ],
)
def test_the_audit_finds(source):
    assert audit(source)


@pytest.mark.parametrize(
    "source",
    [
        "import yaml\nyaml.safe_load(text)",
        "import yaml\nyaml.compose(text, Loader=yaml.SafeLoader)",
        "import yaml\nyaml.compose(text, yaml.CSafeLoader)",
        "import re\nre.compile('a')",
        "jitted.lower(x).compile()",
        "model.eval()",
        "import subprocess\nsubprocess.run(['ls'], shell=False)",
        "import numpy\nnumpy.load(file, allow_pickle=False)",
        "import importlib\nimportlib.import_module('jax')",
        "import importlib.metadata\nimportlib.metadata.version('jax')",
        "'import pickle'",
    ],
)
def test_the_audit_lets_pass(source):
    assert audit(source) == []
