"""The checks: each takes a survey and yields what it finds."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pcls.data.doctor.findings import Finding, Severity
from pcls.data.doctor.look import Mark
from pcls.data.doctor.near import near_groups
from pcls.data.doctor.survey import Survey, groups_of_equal

TINY = 32
HUGE = 25_000_000
LONG = 5
FEW = 10
IMBALANCE = 10


def examine(survey: Survey) -> list[Finding]:
    """Every check; the most serious findings first."""
    checks = (undecodable, exact_duplicates, near_duplicates, groups, class_names, class_counts, sizes, unusual)
    found = [finding for check in checks for finding in check(survey)]
    return sorted(found, key=lambda finding: finding.severity)


def singles(records: np.ndarray) -> np.ndarray:
    """Each record as a case of its own."""
    return records[:, None]


# Files.


def undecodable(survey: Survey) -> Iterator[Finding]:
    """Records that no run can use."""
    records = np.flatnonzero(~survey.looks["decoded"])
    if len(records):
        yield Finding(
            "undecodable",
            Severity.SERIOUS,
            f"{len(records):,} of {_images(len(survey.looks))} cannot be decoded",
            "Repair or replace them, or leave them out by the quarantine list.",
            singles(records),
            left_out=records,
        )


# What is said of each mark. Flat images are a warning: no label can be read off them.
MARKS = (
    (Mark.FLAT, Severity.WARNING, "flat", "have one colour all over", "Remove them, or find out what blanked them."),
    (
        Mark.ANIMATED,
        Severity.WARNING,
        "animated",
        "are animated",
        "Only the first frame is used; save the frames that matter as images of their own.",
    ),
    (
        Mark.MISNAMED,
        Severity.NOTE,
        "misnamed",
        "are of another format than their name says",
        "Their content decides here; rename them for other programs.",
    ),
    (
        Mark.CMYK,
        Severity.NOTE,
        "cmyk",
        "are CMYK",
        "They are converted without a colour profile; convert them to RGB where colours matter.",
    ),
    (Mark.DEEP, Severity.NOTE, "deep", "have 16 bits a channel", "The high 8 bits are used, as a viewer shows them."),
    (Mark.ALPHA, Severity.NOTE, "alpha", "are transparent in places", "They are laid over white."),
    (
        Mark.TURNED,
        Severity.NOTE,
        "turned",
        "are turned by their EXIF orientation",
        "pcls turns them upright; programs that do not will see them lying.",
    ),
)


def unusual(survey: Survey) -> Iterator[Finding]:
    """Files that decode to something else than they seem to hold."""
    for mark, severity, kind, what, advice in MARKS:
        records = np.flatnonzero(survey.looks["decoded"] & (survey.looks["marks"] & mark > 0))
        if len(records):
            # Left out only what holds nothing to learn.
            left_out = records if mark == Mark.FLAT else records[:0]
            title = f"{_images(len(records))} {what}"
            yield Finding(kind, severity, title, advice, singles(records), left_out=left_out)


def sizes(survey: Survey) -> Iterator[Finding]:
    """Images whose size is unlike the others'."""
    looks = survey.looks
    short, long = (side(looks["width"], looks["height"]) for side in (np.minimum, np.maximum))
    decoded = looks["decoded"]
    kinds = (
        (
            "tiny",
            Severity.WARNING,
            short < TINY,
            f"are less than {TINY} pixels high or wide",
            "Thumbnails and placeholders look like this; remove what shows nothing.",
        ),
        (
            "long",
            Severity.WARNING,
            long > LONG * short,
            f"are more than {LONG} times as long as wide",
            "A crop shows little of them; banners and stitched images look like this.",
        ),
        (
            "huge",
            Severity.NOTE,
            looks["width"].astype(np.int64) * looks["height"] > HUGE,
            f"have more than {HUGE // 1_000_000} million pixels",
            "They slow the input down; pcls data convert can make them smaller.",
        ),
    )
    for kind, severity, chosen, what, advice in kinds:
        records = np.flatnonzero(decoded & chosen)
        # What half of a set is like is meant to be so.
        if 0 < len(records) <= decoded.sum() / 2:
            yield Finding(kind, severity, f"{_images(len(records))} {what}", advice, singles(records))


# Duplicates.


def exact_duplicates(survey: Survey) -> Iterator[Finding]:
    """Records whose files are the same to the byte."""
    decoded = np.flatnonzero(survey.looks["decoded"])
    same = [decoded[group] for group in groups_of_equal(survey.looks["digest"][decoded])]
    yield from _duplicates(survey, same, exact=True)


def near_duplicates(survey: Survey) -> Iterator[Finding]:
    """Records that show the same picture: saved again, resized, slightly cropped."""
    decoded = np.flatnonzero(survey.looks["decoded"])
    _, first, digest = np.unique(survey.looks["digest"][decoded], axis=0, return_index=True, return_inverse=True)
    near = near_groups(survey.looks["hash"][decoded[first]], survey.looks["grey"][decoded[first]])
    digest = digest.reshape(-1)
    same = [decoded[group] for group in groups_of_equal(near.group[digest]) if len(set(digest[group])) > 1]
    yield from _duplicates(survey, same, exact=False)
    if not near.complete:
        yield Finding(
            "near_incomplete",
            Severity.NOTE,
            "the search for near duplicates was given up before its end",
            "There are too many pictures that resemble each other; those named are not all.",
        )


def _duplicates(survey: Survey, same: Sequence[np.ndarray], *, exact: bool) -> Iterator[Finding]:
    """Groups across splits, groups of several labels, and all others."""
    across = [group for group in same if len(set(survey.split_of(group))) > 1]
    torn = [group for group in same if len(set(survey.looks["label"][group])) > 1]
    others = [group for group in same if len(_set_of(survey, group)) == 1]
    how, kind = ("the same file", "exact") if exact else ("nearly the same picture", "near")
    severity = Severity.SERIOUS if exact else Severity.WARNING
    look = "" if exact else "Look at them first: some may be different pictures. "
    if across:
        held_out = survey.splits[-1]
        leaked = sum(int((survey.split_of(group) > 0).sum()) for group in across)
        yield Finding(
            f"{kind}_leakage",
            severity,
            f"{_images(leaked)} of {held_out} and a training image are {how}",
            f"{look}The evaluation measures memory on them; take the training copies out by the quarantine list.",
            across,
            left_out=np.concatenate([group[survey.split_of(group) == 0] for group in across]),
        )
    if torn:
        yield Finding(
            f"{kind}_collision",
            severity,
            f"{len(torn):,} times {how} has several labels",
            f"{look}Correct the labels, or leave all of them out by the quarantine list.",
            torn,
            left_out=np.concatenate(torn),
        )
    if others:
        yield Finding(
            f"{kind}_duplicates",
            Severity.WARNING if exact else Severity.NOTE,
            f"{len(others):,} times {how} is there more than once ({_images(sum(map(len, others)))})",
            f"{look}{_advice_for_duplicates(survey)}",
            others,
            left_out=np.concatenate([group[1:] for group in others]),
        )


def _set_of(survey: Survey, group: np.ndarray) -> set[tuple[int, int]]:
    return set(zip(survey.split_of(group).tolist(), survey.looks["label"][group].tolist(), strict=True))


def _advice_for_duplicates(survey: Survey) -> str:
    if len(survey.splits) == 1:
        return "A random split parts them, so the evaluation would know training images: keep one of each."
    return "They count more than others; keep one of each where that is not meant."


def groups(survey: Survey) -> Iterator[Finding]:
    """Groups of records (a patient, a scene) that lie on both sides."""
    known = [source.groups for source in survey.sources.values()]
    if len(known) < 2 or any(numbers is None for numbers in known):
        return
    shared = np.intersect1d(*known[:2])
    if len(shared):
        records = [np.flatnonzero(np.isin(np.concatenate(known), number)) for number in shared[:LISTED_GROUPS]]
        yield Finding(
            "group_leakage",
            Severity.SERIOUS,
            f"{len(shared):,} groups have images in {' and in '.join(survey.splits)}",
            "What is learned of a group helps on its other images; keep each group on one side.",
            records,
        )


# Classes.


def class_names(survey: Survey) -> Iterator[Finding]:
    """Names that people or programs will confuse."""
    names = survey.class_names
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    lines = tuple(", ".join(map(repr, group)) for group in alike.values() if len(group) > 1)
    if lines:
        yield Finding(
            "class_names",
            Severity.SERIOUS,
            f"{len(lines):,} times class names differ only in case or blanks",
            "They are likely one class under two names, and one folder on some file systems; join or rename them.",
            lines=lines,
        )
    natural = sorted(names, key=natural_key)
    if list(names) == sorted(names) and natural != list(names):
        moved = [f"{a!r} is class {i}, by number it would be {b!r}" for i, (a, b) in enumerate(zip(names, natural))]
        lines = tuple(line for line, a, b in zip(moved, names, natural, strict=True) if a != b)
        yield Finding(
            "class_order",
            Severity.WARNING,
            f"{len(lines):,} classes stand elsewhere when names are sorted by the numbers in them",
            "Predictions read by another order are wrong; go by names, or pad the numbers with zeros.",
            lines=lines,
        )


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts as people do: class_2 before class_10."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), "") if part.isascii() and part.isdigit() else (1, 0, part) for part in parts if part]


def class_counts(survey: Survey) -> Iterator[Finding]:
    """Classes without images in a split, with few, and how unequal they are."""
    counts = {split: counts_of(survey, split) for split in survey.splits}
    for split, count in counts.items():
        missing = np.flatnonzero(count == 0)
        if len(missing):
            training = split == survey.splits[0]
            yield Finding(
                "missing_classes",
                Severity.SERIOUS if training else Severity.WARNING,
                f"{len(missing):,} of {len(count):,} classes have no images in {split}",
                "Nothing is learned of them; add images or drop the classes (data.classes)."
                if training
                else "Nothing is known of how well they are told; add images.",
                lines=_count_lines(survey, count, missing),
            )
    count = counts[survey.splits[0]]
    few = np.flatnonzero((count > 0) & (count < FEW))
    if len(few):
        yield Finding(
            "few_images",
            Severity.WARNING,
            f"{len(few):,} of {len(count):,} classes have fewer than {FEW} training images",
            "Their accuracy will vary much from run to run; add images.",
            lines=_count_lines(survey, count, few[np.argsort(count[few], kind="stable")]),
        )
    present = np.flatnonzero(count)
    order = present[np.argsort(count[present], kind="stable")]
    if len(order) and count[order[-1]] >= IMBALANCE * count[order[0]]:
        ratio = count[order[-1]] / count[order[0]]
        yield Finding(
            "imbalance",
            Severity.NOTE,
            f"the largest class has {ratio:,.0f} times as many training images as the smallest",
            "Top-1 accuracy follows the large ones; read balanced accuracy and the recall of each class.",
            lines=_count_lines(survey, count, order[[-1, 0]]),
        )


def counts_of(survey: Survey, split: str) -> np.ndarray:
    """Images of each class in a split."""
    return np.bincount(survey.of_split(split)["label"], minlength=len(survey.class_names))


def _count_lines(survey: Survey, count: np.ndarray, labels: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"{survey.class_names[label]}: {count[label]:,}" for label in labels)


def _images(count: int) -> str:
    return f"{count:,} image" if count == 1 else f"{count:,} images"
