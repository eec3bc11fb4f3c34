"""The Dockerfiles: pinned, without root, and with the versions that were tested together."""

import re
from pathlib import Path

import pytest

from pcls.launch.jobset import GROUP

REPO = Path(__file__).resolve().parents[2]
FILES = sorted((REPO / "launch" / "docker").glob("*.Dockerfile"))


def test_there_is_one_for_each_backend():
    assert [file.name for file in FILES] == ["cpu.Dockerfile", "cuda.Dockerfile", "tpu.Dockerfile"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_image_is_pinned_has_no_root_and_copies_what_is_there(file):
    instructions = [line.split(maxsplit=1) for line in file.read_text().splitlines() if re.match(r"[A-Z]+ ", line)]
    words = {name: [rest for own, rest in instructions if own == name] for name, _ in instructions}
    (base,) = words["FROM"]
    version = re.fullmatch(r"python:(3\.\d+)\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?", base)
    assert version
    (installed,) = [run for run in words["RUN"] if "pip install" in run]
    assert f"--constraint constraints/py{version[1]}.txt" in installed
    extras = re.search(r'"\.\[([a-z,]+)\]"', installed)[1].split(",")
    backend = file.name.partition(".")[0]
    assert ({"cuda", "tpu"} & set(extras)) == ({backend} - {"cpu"})
    declared = (REPO / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in declared for extra in extras)
    assert words["USER"] == ["pcls"]
    assert f"--gid {GROUP} pcls" in words["RUN"][0]
    # The last USER stands after the last thing that root does.
    assert [name for name, _ in instructions].index("USER") > max(
        place for place, (name, _) in enumerate(instructions) if name == "RUN"
    )
    for copied in words["COPY"]:
        source, _ = copied.split()
        assert (REPO / source).exists()
