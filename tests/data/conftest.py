"""Small sets of images on disk."""

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def idx_bytes(array: np.ndarray, magic: bytes | None = None) -> bytes:
    """An idx file: magic number, sizes, pixels."""
    head = bytes([0, 0, 8, array.ndim]) if magic is None else magic
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def write_idx(tmp_path):
    """Writes the two files of an MNIST-like split: `write_idx(images, labels, split, joint, gz)`."""

    def write(images, labels, split="train", joint="-", gz=False) -> Path:
        for array, name, kind in ((images, "images", "idx3"), (labels, "labels", "idx1")):
            data = idx_bytes(np.asarray(array, np.uint8))
            file = tmp_path / f"{split}-{name}{joint}{kind}-ubyte{'.gz' if gz else ''}"
            file.write_bytes(gzip.compress(data) if gz else data)
        return tmp_path

    return write


@pytest.fixture
def write_images(tmp_path):
    """Writes image files of one grey value each: `write_images({"cat/1.png": 10, "dog/2.JPG": b"raw bytes"})`."""

    def write(files: dict[str, int | bytes], size=(6, 4)) -> Path:
        for name, content in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, int):
                stream = io.BytesIO()
                Image.new("RGB", size, (content,) * 3).save(stream, "PNG")
                content = stream.getvalue()
            file.write_bytes(content)
        return tmp_path

    return write
