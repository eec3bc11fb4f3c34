"""Partial loading: what is taken over, drawn anew and left out, and every rule that makes no sense."""

import numpy as np
import pytest

from pcls.config.model import RenameRule
from pcls.errors import UserError
from pcls.transfer.loading import load, loaded_text, write_loaded

SHAPES = {"conv1/kernel": (3, 3, 1, 4), "bn1/mean": (4,), "head/kernel": (4, 2), "head/bias": (2,)}
FRESH = {path: np.zeros(shape) for path, shape in SHAPES.items()}
WEIGHTS = {path: np.ones(shape) for path, shape in SHAPES.items()}


def taken(loaded):
    return {path for path, array in loaded.arrays.items() if array.any()}


def test_without_rules_everything_is_taken_over():
    found = load(WEIGHTS, FRESH, skip={}, source="w")
    assert taken(found) == set(SHAPES)
    assert list(found.arrays) == list(FRESH)
    assert loaded_text(found.rows) == "weights: 4 of 4 arrays taken over, 50 of 50 numbers"


def test_what_is_skipped_is_drawn_anew_and_told(tmp_path):
    weights = WEIGHTS | {"head/kernel": np.ones((4, 7)), "head/bias": np.ones(7), "fc2/kernel": np.ones((7, 2))}
    found = load(weights, FRESH, skip={"^head/": "other classes", "^fc2/": "not asked for"}, source="w")
    assert taken(found) == {"conv1/kernel", "bn1/mean"}
    assert loaded_text(found.rows).splitlines() == [
        "weights: 2 of 4 arrays taken over, 40 of 50 numbers",
        "  + head/kernel  4 x 2  other classes",
        "  + head/bias    2      other classes",
        "  - fc2/kernel   7 x 2  of the weights alone, not used",
    ]
    write_loaded(found.rows, tmp_path / "table.csv")
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines[:2] == ["sign,path,shape,note", "=,conv1/kernel,3 x 3 x 1 x 4,"]
    assert len(lines) == 6


def test_what_the_weights_call_otherwise_is_renamed():
    weights = {f"net.{path}" if "head" not in path else path: array for path, array in WEIGHTS.items()}
    rules = [RenameRule(match=r"^net\.(conv|bn)", to=r"\1")]
    found = load(weights, FRESH, rename=rules, skip={}, source="w")
    assert taken(found) == set(SHAPES)
    assert [(row.path, row.note) for row in found.rows if row.note] == [
        ("conv1/kernel", "from net.conv1/kernel"),
        ("bn1/mean", "from net.bn1/mean"),
    ]


def test_a_long_table_is_cut_on_the_screen():
    fresh = {f"new/{i}": np.zeros(1) for i in range(20)} | FRESH
    lines = loaded_text(load(WEIGHTS, fresh, skip={"^new/": "drawn"}, source="w").rows).splitlines()
    assert len(lines) == 14
    assert lines[-1] == "    and 8 more"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weights": {"more": np.ones(3)}}, "1 not of the model (more)"),
        ({"fresh": {"more": np.ones(3)}}, "1 missing in them (more)"),
        ({"weights": {"head/bias": np.ones(7)}}, "1 of another shape (head/bias has 7 for 2)"),
        ({"skip": {"^haed/": ""}}, "transfer.skip: '^haed/' matches no path; they look like conv1/kernel"),
        ({"skip": {".": "x"}}, "transfer.skip matches every array"),
        ({"rename": [RenameRule(match="^backbone", to="")]}, "transfer.rename: '^backbone' matches no path"),
        ({"rename": [RenameRule(match="kernel|bias", to="mean")]}, "would both be called head/mean"),
        ({"rename": [RenameRule(match="^(head)", to=r"\2")]}, "cannot follow '^(head)'"),
    ],
)
def test_weights_and_rules_that_do_not_fit_are_refused(changes, words):
    weights, fresh = WEIGHTS | changes.pop("weights", {}), FRESH | changes.pop("fresh", {})
    with pytest.raises(UserError) as raised:
        load(weights, fresh, **{"skip": {}, "source": "w"} | changes)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
