"""What people's data hold beside images: each row is one thing that is wrong with a set, and what comes of it.

A thing is refused when the set is opened (`refused`, with the message), left out with weight 0 when it is read
(`skipped`, with the reason), or fine after all (`read`, with the level of its pixels).
"""

import io
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcls.config.data import DataSection
from pcls.data.convert import convert
from pcls.data.crops import crop_draws
from pcls.data.dataset import data_settings, open_dataset, open_source
from pcls.data.order import Order
from pcls.data.preprocessing import Preprocessing
from pcls.errors import UserError

PREPROCESSING = Preprocessing(8, 8, 3, (0.0,) * 3, (1.0,) * 3)
LEVEL = 77
NOISE = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)

# Fills a folder, and returns the path and further settings of the data section.
Build = Callable[[Path], dict[str, object]]


def image_bytes(form="PNG", picture=None, **options) -> bytes:
    stream = io.BytesIO()
    (picture or Image.new("RGB", (12, 10), (LEVEL,) * 3)).save(stream, form, **options)
    return stream.getvalue()


def noise(form: str) -> bytes:
    return image_bytes(form, Image.fromarray(NOISE))


def png_header(width: int, height: int) -> bytes:
    """A PNG file that claims a size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + noise("PNG")[33:]


def jpeg_header(width: int, height: int) -> bytes:
    """A JPEG file that claims a size."""
    data = noise("JPEG")
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def animated(form: str) -> bytes:
    frames = [Image.new("RGB", (12, 10), (level,) * 3) for level in (LEVEL, 200)]
    options = {"lossless": True} if form == "WEBP" else {}
    return image_bytes(form, frames[0], save_all=True, append_images=frames[1:], duration=50, **options)


def classes(root: Path) -> None:
    """Two classes of two good images each; the odd one joins the first."""
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in (1, 2):
            (root / name / f"{number}.png").write_bytes(image_bytes())


def file(content: bytes, name: str = "0.jpg") -> Build:
    """A folder of classes in which one file holds this."""

    def build(root: Path) -> dict[str, object]:
        classes(root)
        (root / "cat" / name).write_bytes(content)
        return {"path": root}

    return build


def odd(make: Callable[[Path], object], name: str = "0.jpg") -> Build:
    """A folder of classes in which something else is made where an image could be."""

    def build(root: Path) -> dict[str, object]:
        classes(root)
        make(root / "cat" / name)
        return {"path": root}

    return build


def folders(*names: str, images: tuple[str, ...] = ()) -> Build:
    """Class folders, of which some have an image."""

    def build(root: Path) -> dict[str, object]:
        root.mkdir()
        for name in {*names, *images}:
            (root / name).mkdir(parents=True)
        for name in images:
            (root / name / "1.png").write_bytes(image_bytes())
        return {"path": root}

    return build


def manifest(text: str) -> Build:
    """A CSV file beside a folder of classes."""

    def build(root: Path) -> dict[str, object]:
        classes(root)
        (root / "list.csv").write_text(text)
        return {"path": root / "list.csv"}

    return build


def tar(*names: str) -> Build:
    """A tar file with images of these names, one class a folder."""

    def build(root: Path) -> dict[str, object]:
        root.mkdir()
        with tarfile.open(root / "0.tar", "w") as archive:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(image_bytes())
                archive.addfile(member, io.BytesIO(image_bytes()))
        return {"path": root, "cache": str(root.parent / "cache")}

    return build


def link_out(path: Path) -> None:
    outside = path.parent.parent.parent / "outside.png"
    outside.write_bytes(image_bytes())
    path.symlink_to(outside)


def folder_with_image(path: Path) -> None:
    path.mkdir()
    (path / "0.png").write_bytes(image_bytes())


def class_link_out(root: Path) -> dict[str, object]:
    classes(root)
    (root.parent / "elsewhere").mkdir()
    (root / "owl").symlink_to(root.parent / "elsewhere")
    return {"path": root}


def records(root: Path, damage: Callable[[bytearray], None] = lambda data: None) -> dict[str, object]:
    """A converted set whose one shard is damaged."""
    classes(root / "images")
    source, _ = open_source(DataSection(source="folder", path=str(root / "images")))
    convert(source, None, root / "set", description="images")
    (shard,) = (root / "set").glob("*.array_record")
    data = bytearray(shard.read_bytes())
    damage(data)
    shard.write_bytes(data)
    return {"path": root / "set"}


def flip_in_second_image(data: bytearray) -> None:
    second = data.index(b"PNG", data.index(b"PNG") + 1)
    data[second + 20] ^= 4


def cut(data: bytearray) -> None:
    del data[len(data) // 2 :]


def quarantine(root: Path) -> dict[str, object]:
    classes(root)
    (root / "list").write_text("another/place/1.png\n")
    return {"path": root, "quarantine": str(root / "list")}


READ: dict[str, tuple[Build, int]] = {
    "a PNG named .jpg": (file(image_bytes("PNG")), LEVEL),
    "a JPEG named .png": (file(image_bytes("JPEG"), "0.png"), LEVEL),
    "a WebP named .jpeg": (file(image_bytes("WEBP", lossless=True), "0.jpeg"), LEVEL),
    "a CMYK JPEG": (file(image_bytes("JPEG", Image.new("CMYK", (12, 10), (0, 0, 0, 178)))), LEVEL),
    "a grey JPEG": (file(image_bytes("JPEG", Image.new("L", (12, 10), LEVEL))), LEVEL),
    "a 16-bit PNG": (file(image_bytes("PNG", Image.new("I;16", (12, 10), LEVEL << 8)), "0.png"), LEVEL),
    "a transparent PNG": (file(image_bytes("PNG", Image.new("RGBA", (12, 10), (9, 9, 9, 0))), "0.png"), 255),
    "a PNG with a palette": (file(image_bytes("PNG", Image.new("P", (12, 10), 0)), "0.png"), 0),
    "one pixel": (file(image_bytes("PNG", Image.new("RGB", (1, 1), (LEVEL,) * 3))), LEVEL),
    "1 x 8000 pixels": (file(image_bytes("PNG", Image.new("RGB", (1, 8000), (LEVEL,) * 3))), LEVEL),
    "8000 x 1 pixels": (file(image_bytes("JPEG", Image.new("RGB", (8000, 1), (LEVEL,) * 3))), LEVEL),
    "an animated WebP": (file(animated("WEBP"), "0.webp"), LEVEL),
    "an animated PNG": (file(animated("PNG"), "0.png"), LEVEL),
    "bytes behind a JPEG": (file(image_bytes("JPEG") + b"more" * 50), LEVEL),
    "a progressive JPEG": (file(image_bytes("JPEG", progressive=True)), LEVEL),
    "a name in other letters": (file(image_bytes(), "0 ä 猫 🐈.png"), LEVEL),
    "a newline in a name": (file(image_bytes(), "0\n1.png"), LEVEL),
    "a name that is no UTF-8": (odd(lambda path: path.write_bytes(image_bytes()), os.fsdecode(b"0\xff.png")), LEVEL),
    "a folder named like an image": (
        odd(lambda path: (path.mkdir(), (path / "0.png").write_bytes(image_bytes()))),
        LEVEL,
    ),
    "a link within the folder": (odd(lambda path: path.symlink_to("1.png"), "0.png"), LEVEL),
    "classes that differ in case only": (folders("Cat", "cat", images=("Cat", "cat")), LEVEL),
    "a whole converted set": (records, LEVEL),
}

SKIPPED: dict[str, tuple[Build, str]] = {
    "an empty file": (file(b""), "cannot be decoded (the file is empty)"),
    "a web page named .jpg": (
        file(b"<!DOCTYPE html><html>404</html>"),
        "cannot be decoded (not a JPEG, PNG or WebP image, 31 bytes)",
    ),
    "a JPEG cut at 200 bytes": (file(noise("JPEG")[:200]), "cannot be decoded (truncated after 200 bytes)"),
    "half a JPEG": (
        file(noise("JPEG")[: len(noise("JPEG")) // 2]),
        f"cannot be decoded (truncated after {len(noise('JPEG')) // 2:,} bytes)",
    ),
    "half a PNG": (
        file(noise("PNG")[: len(noise("PNG")) // 2], "0.png"),
        f"cannot be decoded (truncated after {len(noise('PNG')) // 2:,} bytes)",
    ),
    "half a WebP": (file(noise("WEBP")[: len(noise("WEBP")) // 2], "0.webp"), "cannot be decoded (could not"),
    "a PNG of 60000 x 60000 pixels": (
        file(png_header(60_000, 60_000), "0.png"),
        "cannot be decoded (more than 100,000,000 pixels)",
    ),
    "a JPEG of 60000 x 60000 pixels": (
        file(jpeg_header(60_000, 60_000)),
        "cannot be decoded (more than 100,000,000 pixels)",
    ),
    "a JPEG of 12000 x 9000 pixels": (
        file(jpeg_header(12_000, 9_000)),
        "cannot be decoded (12,000 x 9,000 pixels, more than 100,000,000)",
    ),
    "a JPEG without width": (file(jpeg_header(0, 100)), "cannot be decoded (not a JPEG, PNG or WebP image,"),
    "a GIF named .png": (file(animated("GIF"), "0.png"), "cannot be decoded (not a JPEG, PNG or WebP image,"),
    "a BMP named .jpg": (file(image_bytes("BMP")), "cannot be decoded (not a JPEG, PNG or WebP image, 414 bytes)"),
    "a TIFF named .jpg": (file(image_bytes("TIFF")), "cannot be decoded (not a JPEG, PNG or WebP image,"),
    "text named .webp": (
        file(b"RIFF\0\0\0\0WEBPnothing", "0.webp"),
        "cannot be decoded (not a JPEG, PNG or WebP image, 19",
    ),
    "a link that leads out": (odd(link_out), "cannot be read (is a link that leads out of the folder)"),
    "a link to nothing": (odd(lambda path: path.symlink_to("gone.png")), "cannot be read (No such file or directory)"),
    "a link to itself": (odd(lambda path: path.symlink_to(path)), "cannot be read (Too many levels of symbolic links)"),
    "a pipe": (odd(os.mkfifo), "cannot be read (is no regular file)"),
    "a flipped bit in a record": (
        partial(records, damage=flip_in_second_image),
        "cannot be read (train-00000-of-00001",
    ),
}

REFUSED: dict[str, tuple[Build, str]] = {
    "no images": (folders("cat", "dog"), "no .jpg, .jpeg, .png, .webp files in folders below it"),
    "an empty class": (folders("cat", "dog", images=("cat",)), "no images in the class folder 'dog'"),
    "one class": (folders("cat", images=("cat",)), "only one class, 'cat'"),
    "a class that is a link out": (class_link_out, "is a link that leads out of the folder"),
    "parts with other classes": (
        folders(
            "train/cat", "train/dog", "val/cat", "val/owl", images=("train/cat", "train/dog", "val/cat", "val/owl")
        ),
        "only train has 'dog', only val has 'owl'; both need the same classes: rename the folders",
    ),
    "a manifest without labels": (
        manifest("path\ncat/1.png\n"),
        "list.csv: no column 'label'; path and label are needed, and it has: path",
    ),
    "a manifest with an empty label": (
        manifest("path,label\ncat/1.png,\ndog/1.png,b\n"),
        "list.csv, row 2: label is empty",
    ),
    "a label that is no number among numbers": (
        manifest("path,label\ncat/1.png,1\ndog/1.png,b\n"),
        "list.csv, row 3: label 'b' is no whole number, and others are",
    ),
    "a file listed under two labels": (
        manifest("path,label\ncat/1.png,a\ncat/1.png,b\ndog/1.png,b\n"),
        "list.csv, row 3: path 'cat/1.png' stands in row 2 too, with the labels 'a' and 'b'",
    ),
    "a file listed twice": (
        manifest("path,label\ncat/1.png,a\ncat/1.png,a\ndog/1.png,b\n"),
        "list.csv, row 3: path 'cat/1.png' stands in row 2 too, with the same label 'a'",
    ),
    "a path that leaves the manifest's folder": (
        manifest("path,label\n../x.png,a\ndog/1.png,b\n"),
        "list.csv, row 2: path '../x.png' leads out of the folder",
    ),
    "a manifest without rows": (manifest("path,label\n"), "list.csv: holds no rows"),
    "a tar member above its folder": (tar("../cat/1.png", "dog/1.png"), "0.tar: member '../cat/1.png' points out"),
    "a tar member with an absolute name": (tar("/cat/1.png", "dog/1.png"), "0.tar: member '/cat/1.png' points out"),
    "a tar without images": (tar(), "0.tar: no samples"),
    "a shard cut in half": (
        partial(records, damage=lambda data: data.__delitem__(slice(len(data) // 2, None))),
        "train-",
    ),
    "a quarantine list of another place": (quarantine, "none of its 1 names is in the set"),
}


def opened(build: Build, folder: Path):
    """The training records of what was built."""
    found = build(folder / "data")
    settings = data_settings(str(found.pop("path"))) | {f"data.{key}": value for key, value in found.items()}
    fields = {key.removeprefix("data."): value for key, value in settings.items()}
    section = DataSection(**fields)
    # Whole, unless a list is to be read too.
    return open_dataset(section).train if section.quarantine else open_source(section)[0]


def read(source):
    """All records, cut at random and exactly."""
    numbers = np.arange(len(source))
    draws = crop_draws(0, numbers, numbers)
    return [source.read(numbers, PREPROCESSING, some) for some in (draws, None)]


@pytest.mark.parametrize("name", READ)
def test_what_can_be_read_is_read(tmp_path, name):
    build, level = READ[name]
    source = opened(build, tmp_path)
    for found in read(source):
        assert found.decoded.all()
        assert np.abs(found.images[0].astype(int) - level).max() <= 3
    assert len({source.name(record) for record in range(len(source))}) == len(source)
    assert all(source.name(record).isprintable() for record in range(len(source)))


@pytest.mark.parametrize("name", SKIPPED)
def test_what_cannot_be_read_weighs_nothing_and_is_named(tmp_path, name):
    build, reason = SKIPPED[name]
    source = opened(build, tmp_path)
    for found in read(source):
        (bad,) = np.flatnonzero(~found.decoded)
        assert not found.images[bad].any()
        assert (found.images[found.decoded] == LEVEL).all()
        assert found.labels.tolist() == source.labels.tolist()
    told = source.failure(int(bad), PREPROCESSING)
    assert told.startswith(reason)
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_learned_from_is_refused_in_one_line(tmp_path, name):
    build, message = REFUSED[name]
    with pytest.raises(UserError) as raised:
        opened(build, tmp_path)
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_file_that_is_removed_while_training_is_named(tmp_path):
    source = opened(file(image_bytes(), "0.png"), tmp_path)
    assert all(found.decoded.all() for found in read(source))
    (tmp_path / "data" / "cat" / "0.png").unlink()
    assert all(found.decoded.tolist() == [False] + [True] * 4 for found in read(source))
    assert source.failure(0, PREPROCESSING) == "cannot be read (No such file or directory)"


def test_fewer_images_than_a_batch_make_a_batch_of_several_passes():
    records, epochs = Order(5, 12, 0).records_of_step(0)
    assert sorted(np.bincount(records)) == [2, 2, 2, 3, 3]
    assert epochs.tolist() == [0] * 5 + [1] * 5 + [2] * 2
