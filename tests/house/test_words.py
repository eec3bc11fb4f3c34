"""Where packages come from is the choice of whoever installs: no file names an index."""

import re
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
INDEX = re.compile(r"pypi\.org|pythonhosted\.org|pytorch\.org/whl|--(extra-)?index[-]url|--find[-]links|(PIP|UV)_INDEX")
GENERATED = {"build", "dist", "runs", "__pycache__"}


def text_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every file of the tree that reads as text; of the hidden folders only .ci."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and entry.name not in GENERATED and (entry.name == ".ci" or entry.name[0] != "."):
            yield from text_files(entry)
        elif entry.is_file():
            try:
                yield entry, entry.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def test_no_file_names_a_package_index():
    texts = dict(text_files(REPO))
    assert REPO / "pyproject.toml" in texts
    assert REPO / ".ci" / "run" in texts
    assert [str(file.relative_to(REPO)) for file, text in texts.items() if INDEX.search(text)] == []


def test_constraints_hold_names_and_versions_only():
    files = sorted((REPO / "constraints").glob("py*.txt"))
    assert [file.name for file in files] == ["py3.11.txt", "py3.12.txt", "py3.13.txt"]
    pin = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!]+")
    for file in files:
        header, *pins = file.read_text().splitlines()
        assert header.startswith("# ")
        assert [line for line in pins if not pin.fullmatch(line)] == []
