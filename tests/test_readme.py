"""The commands of README and docs, run as they stand there, in a folder with two classes of real photographs."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

ROOT = Path(__file__).parent.parent
README, DATA, PRETRAINED = ROOT / "README.md", ROOT / "docs" / "data.md", ROOT / "docs" / "pretrained.md"
ADVISE, IMBALANCE = ROOT / "docs" / "advise.md", ROOT / "docs" / "imbalance.md"
EVALUATION = ROOT / "docs" / "evaluation.md"
PROBES = ROOT / "docs" / "probes.md"
TUNING = ROOT / "docs" / "tuning.md"
LAUNCHING = ROOT / "docs" / "launching.md"
REPORT = ROOT / "docs" / "report.md"
MULTILABEL = ROOT / "docs" / "multilabel.md"
FINETUNING = ROOT / "docs" / "finetuning.md"
DISTILLATION = ROOT / "docs" / "distillation.md"
COMPRESS = ROOT / "docs" / "compress.md"
PREDICT = ROOT / "docs" / "predict.md"
EXPORT = ROOT / "docs" / "export.md"
# Run by continuous integration itself, beside this suite.
RUN_ELSEWHERE = {"make demo", "make test"}

# A page's commands in one process: jax takes seconds to be imported.
ONE_AFTER_ANOTHER = """
import json, sys
from pcls.cli import main
for argv in json.loads(sys.argv[1]):
    print("$ pcls", *argv, flush=True)
    if code := main(argv):
        sys.exit(f"pcls {argv} ended with {code}")
"""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page: Path) -> list[str]:
    lines = [line.partition("#")[0].strip() for block in blocks(page, "bash") for line in block.splitlines()]
    return [line for line in lines if line and line not in RUN_ELSEWHERE]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `flower` and `temple`: crops of scikit-learn's two photographs."""
    root = tmp_path_factory.mktemp("photos")
    temple, flower = (Image.fromarray(pixels) for pixels in load_sample_images().images)
    for name, photo in (("flower", flower), ("temple", temple)):
        (root / name).mkdir()
        for number in range(1, 11):
            left, top = 30 * number, 20 * number
            photo.crop((left, top, left + 200, top + 200)).save(root / name / f"{number}.jpg")
    return root


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    """A folder with `photos`, a page's own: two pages may call their runs the same."""
    shutil.copytree(photos, tmp_path / "photos")
    return tmp_path


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # One device, as on a laptop: the batch sizes of the README need not divide by the suite's eight.
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONWARNINGS": "error"}
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


# What needs the hub stands in blocks without a language.
@pytest.mark.system
@pytest.mark.parametrize(
    ("page", "count"),
    [
        (README, 8),
        (DATA, 4),
        (PRETRAINED, 3),
        (ADVISE, 2),
        (IMBALANCE, 1),
        (PROBES, 3),
        (EVALUATION, 5),
        (TUNING, 3),
        (LAUNCHING, 9),
        (REPORT, 3),
        (MULTILABEL, 4),
        (FINETUNING, 4),
        (DISTILLATION, 2),
        (COMPRESS, 4),
        (PREDICT, 4),
        (EXPORT, 3),
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else "",
)
def test_every_command_runs_as_it_stands(folder: Path, page: Path, count: int) -> None:
    found = commands(page)
    assert len(found) >= count
    if page == MULTILABEL:
        # The program that makes the data of its commands.
        (block,) = blocks(page, "python")
        (folder / "pairs.py").write_text(block, encoding="utf-8")
        done = run([sys.executable, "pairs.py"], folder)
        assert done.returncode == 0, done.stderr
    assert {command.split()[0] for command in found} == {"pcls"}
    argvs = [shlex.split(command)[1:] for command in found]
    # A plan wants a process of its own, in which jax has not started.
    plans = [argv for argv in argvs if argv[0] == "plan"]
    for some in ([argv for argv in argvs if argv not in plans], *([plan] for plan in plans)):
        done = run([sys.executable, "-c", ONE_AFTER_ANOTHER, json.dumps(some)], folder)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    if page == PREDICT:
        # Of the bundle that its commands made.
        (block,) = blocks(page, "python")
        done = run([sys.executable, "-c", block], folder)
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["photos/flower/1.jpg", "photos/temple/1.jpg"]
    if page == EXPORT:
        told = []
        for block in blocks(page, "python"):
            done = run([sys.executable, "-c", block], folder)
            assert done.returncode == 0, done.stderr
            told.append(done.stdout.split())
        argv = ["predict", "runs/first", "photos/flower/1.jpg", "--format", "jsonl"]
        answer = json.loads(run([sys.executable, "-m", "pcls", *argv], folder).stdout)
        # The worked example, which shares no code with pcls.
        assert told[1][0] == answer["label"]
        assert float(told[1][1]) == pytest.approx(answer["probability"], abs=1e-5)
    made = {README: "runs/photos/report.html", DATA: "photos-records/dataset.json", PREDICT: "answers.parquet"}
    assert page not in made or (folder / made[page]).is_file()


@pytest.mark.system
def test_the_python_of_the_readme_runs_as_it_stands(folder: Path) -> None:
    (block,) = blocks(README, "python")
    program = folder / "readme.py"
    program.write_text(block, encoding="utf-8")
    done = run([sys.executable, str(program)], folder)
    assert done.returncode == 0, done.stderr
    assert "Prediction(path='photos/flower/1.jpg', label=" in done.stdout


def test_the_table_of_verbs_is_complete() -> None:
    text = README.read_text(encoding="utf-8")
    done = run([sys.executable, "-m", "pcls", "--help"], README.parent)
    verbs = re.findall(r"^  ([a-z]+) {2,}\S", done.stdout.partition("Commands:")[2], re.M)
    assert len(verbs) >= 10
    for verb in verbs:
        assert f"`pcls {verb}" in text, f"{verb} is missing in the README's table of verbs"


def test_the_errors_shown_in_the_readme_are_real(tmp_path: Path) -> None:
    shown = re.search(r"^pcls: configs/mine.yaml:14: (.*)$", README.read_text(encoding="utf-8"), re.M)
    assert shown
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_text("#\n" * 12 + "optimizer:\n  lr: 1e-3\n")
    done = run([sys.executable, "-m", "pcls", "config", "show", "configs/mine.yaml"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [shown.group(0)]
