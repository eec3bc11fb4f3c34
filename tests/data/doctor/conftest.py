"""Pictures to examine: smooth noise, of which no two resemble each other."""

import io
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from pcls.data.doctor.survey import Survey, survey
from pcls.data.sources.folder import open_folder


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """`picture(seed, size)`: with structure at all scales, as a photograph has."""

    def make(seed: int, size: tuple[int, int] = (80, 60)) -> Image.Image:
        rng = np.random.default_rng(seed)
        sides = (2, 4, 8, 16)
        layers = [cv2.resize(rng.normal(size=(side, side, 3)), size, interpolation=cv2.INTER_CUBIC) for side in sides]
        pixels = np.sum([layer / (level + 1) for level, layer in enumerate(layers)], axis=0)
        return Image.fromarray((255 * (pixels - pixels.min()) / np.ptp(pixels)).astype(np.uint8))

    return make


@pytest.fixture(scope="session")
def encoded(picture) -> Callable[..., bytes]:
    """`encoded(picture or seed, kind)`: as a file holds it."""

    def encode(what: Image.Image | int, kind: str = "JPEG", **options) -> bytes:
        stream = io.BytesIO()
        (picture(what) if isinstance(what, int) else what).save(stream, kind, **options)
        return stream.getvalue()

    return encode


@pytest.fixture
def examined(tmp_path, encoded) -> Callable[..., Survey]:
    """Writes image files and looks at all: `examined({"train/cat/1.jpg": 7})`; a number is the seed of a picture."""

    def write(files: dict[str, bytes | int]) -> Survey:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else encoded(content))
        train, evaluation = open_folder(tmp_path)
        return survey({"train": train} | ({} if evaluation is None else {"evaluation": evaluation}), workers=2)

    return write
