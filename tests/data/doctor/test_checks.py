"""What is found, how serious it is, and what a quarantine would take."""

import numpy as np
import pytest
from PIL import Image

from pcls.data.doctor import checks, near
from pcls.data.doctor.checks import examine, natural_key
from pcls.data.doctor.findings import Finding, Severity
from pcls.data.doctor.look import LOOK
from pcls.data.doctor.survey import Survey, survey
from pcls.data.sources.arrays import ArraySource

SERIOUS, WARNING, NOTE = Severity
# Enough images of each class that the counts are no finding.
CLEAN = {f"train/{name}/{i}.jpg": 100 * label + i for label, name in enumerate("ab") for i in range(10)}
CLEAN |= {f"val/{name}/{i}.jpg": 1000 + 100 * label + i for label, name in enumerate("ab") for i in range(2)}


def found(seen: Survey) -> dict[str, Finding]:
    findings = examine(seen)
    assert len({finding.kind for finding in findings}) == len(findings)
    return {finding.kind: finding for finding in findings}


def names(seen: Survey, records) -> list[str]:
    return ["/".join(seen.name(record).split("/")[-3:]) for record in np.asarray(records).ravel().tolist()]


def test_a_clean_set_has_no_findings(examined):
    assert examine(examined(CLEAN)) == []


def test_what_cannot_be_decoded_comes_first_and_is_left_out(examined, encoded):
    seen = examined(CLEAN | {"train/a/x.jpg": b"", "val/b/y.jpg": encoded(3)[:300], "train/a/z.jpg": b""})
    # The two empty files are no duplicates.
    (finding,) = examine(seen)
    assert (finding.kind, finding.severity, finding.count) == ("undecodable", SERIOUS, "3 of 27")
    assert names(seen, finding.left_out) == ["train/a/x.jpg", "train/a/z.jpg", "val/b/y.jpg"]


def test_the_same_file_in_both_splits_is_leakage(examined):
    seen = examined(CLEAN | {"train/a/x.jpg": 7, "val/a/y.jpg": 7, "val/a/z.jpg": 7})
    (finding,) = examine(seen)
    assert (finding.kind, finding.severity, finding.count) == ("exact_leakage", SERIOUS, "2 of 6")
    # The set holds picture 7 of its own; only training copies go.
    assert names(seen, finding.left_out) == ["train/a/7.jpg", "train/a/x.jpg"]


def test_a_large_group_shows_one_of_each_side_first(examined):
    seen = examined(CLEAN | {f"train/a/x{i}.jpg": 7 for i in range(5)} | {"val/a/y.jpg": 7, "val/b/y.jpg": 7})
    for finding in examine(seen):
        assert names(seen, finding.cases[0][:3]) == ["train/a/7.jpg", "val/a/y.jpg", "val/b/y.jpg"]
        assert len(finding.cases[0]) == 8


def test_the_same_file_under_two_labels_is_a_collision(examined):
    seen = examined(CLEAN | {"train/b/x.jpg": 7})
    (finding,) = examine(seen)
    assert (finding.kind, finding.severity, finding.count) == ("exact_collision", SERIOUS, "1")
    assert names(seen, finding.cases[0]) == names(seen, finding.left_out) == ["train/a/7.jpg", "train/b/x.jpg"]


def test_the_same_file_twice_is_a_warning_and_all_but_the_first_would_go(examined):
    seen = examined(CLEAN | {"train/a/x.jpg": 7, "train/a/y.jpg": 7})
    (finding,) = examine(seen)
    assert (finding.kind, finding.severity, finding.count) == ("exact_duplicates", WARNING, "1 (3 images)")
    assert names(seen, finding.left_out) == ["train/a/x.jpg", "train/a/y.jpg"]
    assert "They count more than others" in finding.advice


def test_without_a_split_duplicates_are_a_leak_to_come(examined):
    files = {name.removeprefix("train/"): seed for name, seed in CLEAN.items() if name.startswith("train")}
    (finding,) = examine(examined(files | {"a/x.jpg": 7}))
    assert finding.advice.startswith("A random split parts them")


def test_near_duplicates_are_told_by_where_they_lie(examined, encoded, picture):
    again = {"train/a/x.jpg": (1, 60), "val/a/y.jpg": (2, 60), "train/b/z.webp": (3, 75)}
    files = {name: encoded(seed, "WEBP" if "webp" in name else "JPEG", quality=q) for name, (seed, q) in again.items()}
    seen = examined(CLEAN | files)
    findings = found(seen)
    assert {kind: finding.severity for kind, finding in findings.items()} == {
        "near_leakage": WARNING,
        "near_collision": WARNING,
        "near_duplicates": NOTE,
    }
    assert names(seen, findings["near_leakage"].left_out) == ["train/a/2.jpg"]
    assert names(seen, findings["near_collision"].cases[0]) == ["train/a/3.jpg", "train/b/z.webp"]
    assert names(seen, findings["near_duplicates"].left_out) == ["train/a/x.jpg"]
    assert all(finding.advice.startswith("Look at them first") for finding in findings.values())


def test_copies_of_a_near_duplicate_join_its_group(examined, encoded):
    seen = examined(CLEAN | {"train/a/x.jpg": encoded(1, quality=60), "train/a/y.jpg": 1})
    findings = found(seen)
    assert findings["exact_duplicates"].count == "1 (2 images)"
    assert names(seen, findings["near_duplicates"].cases[0]) == ["train/a/1.jpg", "train/a/x.jpg", "train/a/y.jpg"]


def test_a_search_that_was_given_up_says_so(examined, monkeypatch):
    monkeypatch.setattr(checks, "near_groups", lambda hashes, greys: near.Near(np.arange(len(hashes)), complete=False))
    assert found(examined(CLEAN))["near_incomplete"].severity is NOTE


UNUSUAL = [
    ("flat", WARNING, lambda encode, draw: encode(Image.new("RGB", (80, 60), "white"), "PNG")),
    ("animated", WARNING, lambda encode, draw: encode(5000, "PNG", save_all=True, append_images=[draw(5001)])),
    ("misnamed", NOTE, lambda encode, draw: encode(5000, "WEBP")),
    ("cmyk", NOTE, lambda encode, draw: encode(draw(5000).convert("CMYK"))),
    ("alpha", NOTE, lambda encode, draw: encode(draw(5000).convert("LA"), "PNG")),
    ("tiny", WARNING, lambda encode, draw: encode(draw(5000, (80, 31)), "PNG")),
    ("long", WARNING, lambda encode, draw: encode(draw(5000, (33, 170)), "PNG")),
]


@pytest.mark.parametrize(("kind", "severity", "make"), UNUSUAL, ids=[kind for kind, *_ in UNUSUAL])
def test_an_unusual_image_is_found(examined, encoded, picture, kind, severity, make):
    name = f"train/a/x.{'jpg' if kind in ('misnamed', 'cmyk') else 'png'}"
    seen = examined(CLEAN | {name: make(encoded, picture)})
    (finding,) = examine(seen)
    assert (finding.kind, finding.severity, finding.count) == (kind, severity, "1")
    assert names(seen, finding.cases) == [name]
    assert len(finding.left_out) == (kind == "flat")


def test_huge_images_are_found_by_their_header_alone():
    looks = np.zeros(3, LOOK)
    looks["decoded"], looks["width"], looks["height"] = True, (5000, 6000, 100), (5000, 6000, 100)
    seen = Survey({"train": ArraySource(np.zeros((3, 1, 1, 1), np.uint8), np.zeros(3), ("a",), "t")}, looks, {})
    (finding,) = [finding for finding in checks.sizes(seen) if finding.kind == "huge"]
    assert finding.cases.tolist() == [[1]]


def test_a_set_of_small_images_is_meant_to_be_so():
    rng = np.random.default_rng(0)
    digits = ArraySource(rng.integers(0, 256, (40, 8, 8, 1), np.uint8), np.arange(40) % 2, ("0", "1"), "digits")
    assert examine(survey({"train": digits}, workers=1)) == []


def grouped(count: int, numbers: list[int], seed: int) -> ArraySource:
    images = np.random.default_rng(seed).integers(0, 256, (count, 40, 40, 1), np.uint8)
    source = ArraySource(images, np.arange(count) % 2, ("0", "1"), f"set{seed}")
    source.groups = np.array(numbers, np.int32)
    return source


def test_a_group_on_both_sides_is_leakage():
    sources = {"train": grouped(20, [0] * 5 + [1] * 10 + [2] * 5, 0), "evaluation": grouped(4, [2, 2, 0, 7], 1)}
    (finding,) = examine(survey(sources, workers=1))
    assert (finding.kind, finding.severity, finding.count) == ("group_leakage", SERIOUS, "2")
    assert finding.left_out.tolist() == [*range(5), *range(15, 20)]
    assert [case.tolist() for case in finding.cases] == [[*range(5), 22], [*range(15, 20), 20, 21]]


def of_classes(names: tuple[str, ...], train: list[int], evaluation: list[int] | None = None) -> dict[str, Finding]:
    sources = {}
    for split, counts in (("train", train), ("evaluation", evaluation)):
        if counts is not None:
            labels = np.repeat(np.arange(len(counts)), counts)
            images = np.random.default_rng(len(sources)).integers(0, 256, (len(labels), 40, 40, 1), np.uint8)
            sources[split] = ArraySource(images, labels, names, split)
    return found(survey(sources, workers=1))


@pytest.mark.parametrize(
    ("names", "lines"),
    [
        (("Cat", "cat", "dog"), ("'Cat', 'cat'",)),
        (("cat", "cat ", "dog  house", "dog house"), ("'cat', 'cat '", "'dog  house', 'dog house'")),
        (("caf\u00e9", "cafe\u0301"), ("'caf\u00e9', 'cafe\u0301'",)),
    ],
)
def test_class_names_that_only_look_different_are_serious(names, lines):
    finding = of_classes(names, [10] * len(names))["class_names"]
    assert (finding.severity, finding.lines) == (SERIOUS, lines)


@pytest.mark.parametrize(
    ("names", "lines"),
    [
        (("c_1", "c_10", "c_2"), ("c_10: 1 here, 2 there", "c_2: 2 here, 1 there")),
        (("0", "1", "10", "2"), ("10: 2 here, 3 there", "2: 3 here, 2 there")),
        # In order by number, or padded, or without numbers: everybody agrees.
        (("0", "1", "2", "10"), None),
        (("c_01", "c_02", "c_10"), None),
        (("Zebra", "ant", "bee"), None),
    ],
)
def test_an_order_that_others_would_not_choose_is_a_warning(names, lines):
    finding = of_classes(names, [10] * len(names)).get("class_order")
    assert (finding and finding.lines) == lines
    assert finding is None or finding.severity is WARNING


def test_natural_order_counts_as_people_do():
    assert sorted(["a10b", "a2", "a2b", "b1", "10", "9", "²"], key=natural_key) == [
        *("9", "10", "a2", "a2b", "a10b", "b1", "²"),
    ]


def test_a_class_without_training_images_is_serious():
    findings = of_classes(("a", "b", "c"), [20, 20, 0], [5, 5, 5])
    assert {kind: (f.severity, f.count, f.lines) for kind, f in findings.items()} == {
        "missing_classes": (SERIOUS, "1 of 3", ("c",))
    }
    findings = of_classes(("a", "b", "c"), [20, 20, 20], [5, 5, 0])
    assert findings["missing_classes"].severity is WARNING


def test_few_images_and_imbalance_are_told():
    findings = of_classes(("a", "b", "c"), [90, 9, 3])
    assert (findings["few_images"].severity, findings["few_images"].lines) == (WARNING, ("c: 3", "b: 9"))
    assert (findings["imbalance"].severity, findings["imbalance"].count) == (NOTE, "30 to 1")
    assert "imbalance" not in of_classes(("a", "b"), [99, 10])
