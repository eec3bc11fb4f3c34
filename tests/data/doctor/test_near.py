"""Near duplicates: found without comparing all pairs, and hardly ever where there are none."""

import gzip
import io

import numpy as np
import pytest
from PIL import Image

from pcls.data.doctor import near
from pcls.data.doctor.look import LOOK, look_at
from pcls.data.sources.source import Stored


def groups(found: near.Near) -> list[list[int]]:
    members = [np.flatnonzero(found.group == group).tolist() for group in np.unique(found.group)]
    return sorted(group for group in members if len(group) > 1)


def looks(images) -> np.ndarray:
    rows = np.zeros(len(images), LOOK)
    for row, image in zip(rows, images, strict=True):
        assert look_at(Stored(image, 0), "a", row) == ""
    return rows


def test_the_pairs_of_the_bands_hold_all_pairs_of_seven_bits_or_fewer():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 400, dtype=np.uint64)
    for copy in range(200):
        for bit in rng.choice(64, rng.integers(0, 8), replace=False):
            hashes[200 + copy] = hashes[200 + copy] if bit == 0 else hashes[copy] ^ np.uint64(1 << int(bit))
    found = {tuple(sorted(pair)) for block in near._pairs_of_a_band(hashes) for pair in block.tolist()}
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None])
    close = {(i, j) for i, j in zip(*np.nonzero(distance <= 7), strict=True) if i < j}
    assert len(close) > 150
    assert close <= found
    # Of 79,800 pairs few are looked at.
    assert len(found) < 400


@pytest.mark.parametrize("at_once", [1, 5, 1 << 20])
def test_blocks_of_any_size_give_each_pair_once(monkeypatch, at_once):
    monkeypatch.setattr(near, "PAIRS_AT_ONCE", at_once)
    starts, counts = np.array([3, 0, 7, 2]), np.array([2, 0, 1, 4])
    pairs = [pair for rows, columns in near._expanded(starts, counts) for pair in zip(rows, columns, strict=True)]
    assert pairs == [(0, 3), (0, 4), (2, 7), (3, 2), (3, 3), (3, 4), (3, 5)]


def test_copies_form_one_group_and_a_faint_picture_none():
    rng = np.random.default_rng(0)
    greys = rng.integers(0, 256, (5, 16, 16)).astype(np.uint8)
    greys[3] = greys[1]
    greys[4] = 99
    hashes = np.array([1, 2, 4, 2 ^ 0b1111111 << 20, 2], np.uint64)
    # 0 and 2 have like hashes and unlike pixels.
    assert groups(near.near_groups(hashes, greys)) == [[1, 3]]


def test_a_chain_is_one_group(monkeypatch):
    monkeypatch.setattr(near, "PAIRS_AT_ONCE", 1)
    greys = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 16, 16)).astype(np.uint8), 4, axis=0)
    hashes = np.array([0, 0x7F, 0x7F << 7 | 0x7F, 0xFFFF << 40], np.uint64)
    assert groups(near.near_groups(hashes, greys)) == [[0, 1, 2]]


def test_the_search_is_given_up_when_too_much_is_alike(monkeypatch):
    monkeypatch.setattr(near, "MAX_COMPARED", 100)
    greys = np.random.default_rng(0).integers(0, 256, (50, 16, 16)).astype(np.uint8)
    assert not near.near_groups(np.zeros(50, np.uint64), greys).complete


def test_nothing_is_near_in_an_empty_set():
    found = near.near_groups(np.zeros(0, np.uint64), np.zeros((0, 16, 16), np.uint8))
    assert (len(found.group), found.complete) == (0, True)


def saved(picture: Image.Image, kind: str = "JPEG", **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Parts of two photographs, of which no two show the same."""
    from sklearn.datasets import load_sample_images

    boxes = [(x, y, x + 200, y + 150) for x in (0, 210, 420) for y in (0, 200)]
    return [Image.fromarray(whole).crop(box) for whole in load_sample_images().images for box in boxes]


@pytest.mark.parametrize(
    "change",
    [
        lambda picture: saved(picture, quality=50),
        lambda picture: saved(picture, "WEBP", quality=75),
        lambda picture: saved(picture.resize((100, 75)), quality=80),
        lambda picture: saved(picture.resize((400, 300))),
        lambda picture: saved(picture.convert("L"), "PNG"),
    ],
)
def test_a_picture_that_was_saved_again_is_found_among_photographs(photographs, change):
    originals = [saved(picture, quality=90) for picture in photographs]
    rows = looks([*originals, *map(change, photographs)])
    found = near.near_groups(rows["hash"], rows["grey"])
    assert groups(found) == [[i, i + len(originals)] for i in range(len(originals))]


@pytest.mark.parametrize(("name", "most"), [("fashion-mnist", 4), ("mnist", 0)])
def test_small_pictures_of_one_kind_are_not_taken_for_copies(shared_data, name, most):
    (file,) = (shared_data / name).glob("train-images*")
    pixels = np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=16)[: 5000 * 784]
    rows = looks(list(pixels.reshape(-1, 28, 28, 1)))
    # Pictures in groups, of 5,000: 12.5 million pairs.
    assert sum(map(len, groups(near.near_groups(rows["hash"], rows["grey"])))) == most
