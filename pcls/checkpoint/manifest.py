"""The manifest of a saved step: what it holds and the digest of every file. Orbax keeps none over array bytes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FORMAT = 1
NAME = "pcls_manifest.json"


class Damaged(Exception):
    """A step that cannot be trusted; the text says which file and why."""


def write_manifest(folder: Path, step: int, leaves: Mapping[str, Any]) -> None:
    """Digests every file of a finished save and writes the manifest, last and atomically.

    Args:
      folder: of the step.
      step: its number.
      leaves: name to array; their shapes and types are recorded.
    """
    names = _files(folder)
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(lambda name: digest(folder / name), names))
    manifest = {
        "format": FORMAT,
        "step": step,
        "leaves": {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in leaves.items()},
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": sha256}
            for name, sha256 in zip(names, digests, strict=True)
        },
    }
    temporary = folder / f"{NAME}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(manifest, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / NAME)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads a step's manifest and compares the files' sizes; cheap enough for a listing.

    Raises:
      Damaged: no manifest (the save was cut off), not readable, or a file of another size.
    """
    try:
        manifest = json.loads((folder / NAME).read_text(encoding="utf-8"))
        files = {str(name): int(entry["bytes"]) for name, entry in manifest["files"].items()}
        if manifest["format"] != FORMAT or not isinstance(manifest["leaves"], dict):
            raise Damaged(f"its manifest has format {manifest['format']}, and this version reads {FORMAT}")
    except FileNotFoundError as error:
        raise Damaged("it has no manifest: its save was cut off") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{NAME} cannot be read ({error})") from error
    for name, size in files.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != size:
            raise Damaged(f"{name} is missing" if found is None else f"{name} has {found:,} of {size:,} bytes")
    return dict(manifest)


def verify(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Compares the digest of every file; raises Damaged with the first that differs."""
    files = manifest["files"]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda name: digest(folder / name), files)
        for (name, entry), sha256 in zip(files.items(), found, strict=True):
            if sha256 != entry["sha256"]:
                raise Damaged(f"{name}: digest differs")


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
