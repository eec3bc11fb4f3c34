"""The checks: each takes a survey and yields what it finds."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pcls.data.doctor.findings import Finding, Severity
from pcls.data.doctor.look import Mark
from pcls.data.doctor.near import MAX_COMPARED, near_groups
from pcls.data.doctor.survey import Survey, groups_of_equal

TINY = 32
HUGE = 25_000_000
LONG = 5
FEW = 10
IMBALANCE = 10
LISTED_GROUPS = 100


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
            "Images that cannot be decoded",
            f"{len(records):,} of {len(survey.looks):,}",
            "Repair or replace them, or leave them out by the quarantine list.",
            singles(records),
            left_out=records,
        )


# What is said of each mark. Flat images are a warning: there is nothing to learn from them.
MARKS = (
    (
        Mark.FLAT,
        Severity.WARNING,
        "flat",
        "Images of one colour all over",
        "Find out what blanked them, or remove them.",
    ),
    (
        Mark.ANIMATED,
        Severity.WARNING,
        "animated",
        "Animated images",
        "Only the first frame is used; save the frames that matter as images of their own.",
    ),
    (
        Mark.MISNAMED,
        Severity.NOTE,
        "misnamed",
        "Images of another format than their name says",
        "The content decides here; rename them for other programs.",
    ),
    (
        Mark.CMYK,
        Severity.NOTE,
        "cmyk",
        "CMYK images",
        "They are converted without a colour profile; convert them to RGB where colours matter.",
    ),
    (
        Mark.DEEP,
        Severity.NOTE,
        "deep",
        "Images of 16 bits a channel",
        "The high 8 bits are used, as a viewer shows them.",
    ),
    (Mark.ALPHA, Severity.NOTE, "alpha", "Images that are transparent in places", "They are laid over white."),
    (
        Mark.TURNED,
        Severity.NOTE,
        "turned",
        "Images that EXIF data turn",
        "They are turned upright here; programs that do not will see them lying.",
    ),
)


def unusual(survey: Survey) -> Iterator[Finding]:
    """Files that decode to something else than they seem to hold."""
    for mark, severity, kind, title, advice in MARKS:
        records = np.flatnonzero(survey.looks["decoded"] & (survey.looks["marks"] & mark > 0))
        if len(records):
            # The others have something to learn from.
            left_out = records if mark == Mark.FLAT else records[:0]
            yield Finding(kind, severity, title, f"{len(records):,}", advice, singles(records), left_out=left_out)


def sizes(survey: Survey) -> Iterator[Finding]:
    """Images whose size is unlike the others'."""
    looks = survey.looks
    short, long = (side(looks["width"], looks["height"]) for side in (np.minimum, np.maximum))
    pixels = looks["width"].astype(np.int64) * looks["height"]
    for kind, severity, chosen, title, advice in (
        (
            "tiny",
            Severity.WARNING,
            short < TINY,
            f"Images less than {TINY} pixels high or wide",
            "Thumbnails and placeholders look like this; remove what shows nothing.",
        ),
        (
            "long",
            Severity.WARNING,
            long > LONG * short,
            f"Images more than {LONG} times as long as wide",
            "A crop shows little of them; banners and stitched pictures look like this.",
        ),
        (
            "huge",
            Severity.NOTE,
            pixels > HUGE,
            f"Images of more than {HUGE // 1_000_000} million pixels",
            "They slow the input down; pcls data convert makes them smaller.",
        ),
    ):
        records = np.flatnonzero(looks["decoded"] & chosen)
        # What half of a set is like is meant to be so.
        if 0 < len(records) <= looks["decoded"].sum() / 2:
            yield Finding(kind, severity, title, f"{len(records):,}", advice, singles(records))


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
            "Pictures compared before the search for near duplicates was given up",
            f"{MAX_COMPARED:,} pairs",
            "There are too many pictures that resemble each other; those named are not all.",
        )


def _duplicates(survey: Survey, same: Sequence[np.ndarray], *, exact: bool) -> Iterator[Finding]:
    """Groups across splits, groups of several labels, and all others."""
    across = [group for group in same if len(set(survey.split_of(group))) > 1]
    torn = [group for group in same if len(set(survey.looks["label"][group])) > 1]
    others = [group for group in same if len(_set_of(survey, group)) == 1]
    kind, severity = ("exact", Severity.SERIOUS) if exact else ("near", Severity.WARNING)
    look = "" if exact else "Look at them first: some may be different pictures. "
    train, held_out = survey.splits[0], survey.splits[-1]
    if across:
        leaked = sum(int((survey.split_of(group) > 0).sum()) for group in across)
        shared = f"that are in {train} too, byte for byte" if exact else f"with nearly the same picture in {train}"
        yield Finding(
            f"{kind}_leakage",
            severity,
            f"{held_out.capitalize()} images {shared}",
            f"{leaked:,} of {len(survey.of_split(held_out)):,}",
            f"{look}On them the evaluation measures memory; leave the copies in {train} out by the quarantine list.",
            [_telling(survey, group) for group in across],
            left_out=np.concatenate([group[survey.split_of(group) == 0] for group in across]),
        )
    if torn:
        yield Finding(
            f"{kind}_collision",
            severity,
            f"{'Files' if exact else 'Pictures that are nearly the same'} under several labels",
            f"{len(torn):,}",
            f"{look}Correct the labels, or leave all of them out by the quarantine list.",
            [_telling(survey, group) for group in torn],
            left_out=np.concatenate(torn),
        )
    if others:
        yield Finding(
            f"{kind}_duplicates",
            Severity.WARNING if exact else Severity.NOTE,
            f"{'Files' if exact else 'Pictures'} that are there more than once{'' if exact else ', or nearly so'}",
            f"{len(others):,} ({sum(map(len, others)):,} images)",
            f"{look}{_advice_for_duplicates(survey)}",
            others,
            left_out=np.concatenate([group[1:] for group in others]),
        )


def _set_of(survey: Survey, group: np.ndarray) -> set[tuple[int, int]]:
    return set(zip(survey.split_of(group).tolist(), survey.looks["label"][group].tolist(), strict=True))


def _telling(survey: Survey, group: np.ndarray) -> np.ndarray:
    """The group with one record of each split and label ahead: of many only the first are shown."""
    kinds = np.stack([survey.split_of(group), survey.looks["label"][group]], axis=1)
    first = np.sort(np.unique(kinds, axis=0, return_index=True)[1])
    return np.concatenate([group[first], np.delete(group, first)])


def _advice_for_duplicates(survey: Survey) -> str:
    if len(survey.splits) == 1:
        return "A random split parts them, so the evaluation would know training images: keep one of each."
    return "They count more than others; keep one of each where that is not meant."


def groups(survey: Survey) -> Iterator[Finding]:
    """Groups of records (a patient, a scene) that lie on both sides."""
    known = [source.groups for source in survey.sources.values() if source.groups is not None]
    if len(known) < 2:
        return
    shared = np.intersect1d(known[0], known[1])
    if len(shared):
        numbers = np.concatenate(known)
        listed = [np.flatnonzero(numbers == number) for number in shared[:LISTED_GROUPS]]
        yield Finding(
            "group_leakage",
            Severity.SERIOUS,
            f"Groups with images in {' and in '.join(survey.splits)}",
            f"{len(shared):,}",
            f"What is learned of a group helps on its other images; leave those in {survey.splits[0]} out.",
            listed,
            left_out=np.flatnonzero(np.isin(known[0], shared)),
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
            "Class names that differ only in case or blanks",
            f"{sum(len(group) for group in alike.values() if len(group) > 1):,}",
            "They are likely one class under two names, and one folder on some file systems; join or rename them.",
            lines=lines,
        )
    place = {name: number for number, name in enumerate(sorted(names, key=natural_key))}
    moved = [(name, number) for number, name in enumerate(names) if place[name] != number]
    if list(names) == sorted(names) and moved:
        yield Finding(
            "class_order",
            Severity.WARNING,
            "Classes with another number where names are sorted as people count",
            f"{len(moved):,} of {len(names):,}",
            "Predictions that are read in another order are wrong: go by names, or pad their numbers with zeros.",
            lines=tuple(f"{name}: {number} here, {place[name]} there" for name, number in moved),
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
                f"Classes without images in {split}",
                f"{len(missing):,} of {len(count):,}",
                "Nothing is learned of them; add images or drop the classes (data.classes)."
                if training
                else "Nothing is known of how well they are told; add images.",
                lines=tuple(survey.class_names[label] for label in missing),
            )
    count = counts[survey.splits[0]]
    few = np.flatnonzero((count > 0) & (count < FEW))
    if len(few):
        yield Finding(
            "few_images",
            Severity.WARNING,
            f"Classes with fewer than {FEW} training images",
            f"{len(few):,} of {len(count):,}",
            "Their accuracy will vary much from run to run; add images.",
            lines=_count_lines(survey, count, few[np.argsort(count[few], kind="stable")]),
        )
    present = np.flatnonzero(count)
    order = present[np.argsort(count[present], kind="stable")]
    if len(order) and count[order[-1]] >= IMBALANCE * count[order[0]]:
        yield Finding(
            "imbalance",
            Severity.NOTE,
            "Training images of the largest class to those of the smallest",
            f"{count[order[-1]] / count[order[0]]:,.0f} to 1",
            "Top-1 accuracy follows the large ones; read balanced accuracy and the recall of each class.",
            lines=_count_lines(survey, count, order[[-1, 0]]),
        )


def counts_of(survey: Survey, split: str) -> np.ndarray:
    """Images of each class in a split."""
    return np.bincount(survey.of_split(split)["label"], minlength=len(survey.class_names))


def _count_lines(survey: Survey, count: np.ndarray, labels: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"{survey.class_names[label]}: {count[label]:,}" for label in labels)
