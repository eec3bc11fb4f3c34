"""The flat dump of every recipe that comes with pcls, so that a moved default shows in review."""

import os
from pathlib import Path

import pytest

from pcls.config import flat_recipe, load_recipe

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
GOLDEN = Path(__file__).parent / "golden"
RENEW = "PCLS_RENEW_GOLDEN"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))

# Names that scripts rely on.
PROMISED = {
    "mnist_cnn",
    "mnist_rnn",
    "fashion_mnist_cnn",
    "fashion_mnist_rnn",
    "digits_cnn",
    "digits_rnn",
    "folder_resnet18",
}


def test_the_promised_recipes_are_there():
    assert set(NAMES) >= PROMISED


def test_no_golden_dump_outlives_its_recipe():
    assert {path.stem for path in GOLDEN.glob("*.txt")} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_means_what_its_golden_dump_says(name):
    dump = "".join(f"{key}: {value}\n" for key, value in flat_recipe(load_recipe(name)).items())
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get(RENEW) == "1":
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(dump)
    found = golden.read_text() if golden.is_file() else ""
    assert dump == found, (
        f"{name} no longer means what tests/config/golden/{golden.name} says; where that is meant, renew the file by "
        f"`{RENEW}=1 python -m pytest tests/config/test_golden.py` and commit it"
    )
