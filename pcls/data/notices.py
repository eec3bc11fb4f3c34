"""What is odd about a set and worth a word before the training starts, though nothing of it is an error."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from pcls.data.sources.arrays import ArraySource
from pcls.data.sources.source import Source, class_counts

# Bytes of images whose equality is looked for, about a second's; pcls data doctor looks at any.
COMPARED_BYTES = 2**30
NAMED = 3


def notices(train: Source, evaluation: Source) -> Iterator[str]:
    """A line each."""
    yield from _similar_names(train.class_names)
    yield from _not_trained(train)
    yield from _not_evaluated(train, evaluation)
    yield from _shared(train, evaluation)


def _similar_names(names: tuple[str, ...]) -> Iterator[str]:
    """Classes that somebody may have meant for one."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            yield f"classes {other!r} and {name!r} differ in capital letters only; are they one?"


def _not_trained(train: Source) -> Iterator[str]:
    """Labels that the model never sees; where each record carries one, such a class was refused."""
    missing = [name for name, count in class_counts(train).items() if not count]
    if missing:
        yield f"{len(missing):,} of {len(train.class_names):,} classes have no training record ({_few(missing)})"


def _not_evaluated(train: Source, evaluation: Source) -> Iterator[str]:
    counts = class_counts(evaluation)
    missing = [name for name in train.class_names if not counts.get(name)]
    if missing:
        number = f"{len(missing):,} of {len(train.class_names):,}"
        yield f"{number} classes have no held-out record, and no number ({_few(missing)})"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _shared(train: Source, evaluation: Source) -> Iterator[str]:
    """Images that are evaluated on and trained on, to the last pixel."""
    if not isinstance(train, ArraySource) or not isinstance(evaluation, ArraySource):
        return
    if train.images.nbytes + evaluation.images.nbytes > COMPARED_BYTES:
        return
    trained = set(_digests(train.images))
    shared = [record for record, digest in enumerate(_digests(evaluation.images)) if digest in trained]
    if shared:
        yield (
            f"{len(shared):,} of {len(evaluation):,} held-out images are trained on too, pixel by pixel "
            f"({evaluation.name(shared[0])} first): their share of the accuracy means nothing"
        )


def _digests(images: np.ndarray) -> Iterator[bytes]:
    for image in images:
        yield hashlib.blake2b(image.tobytes(), digest_size=16).digest()
