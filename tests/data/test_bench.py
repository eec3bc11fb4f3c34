"""What limits the input: each stage counted in images, the slowest named."""

import io

import numpy as np
import pytest
from PIL import Image

from pcls.cli.data_bench import rates_text
from pcls.data.bench import IMAGES, ROUNDS, InputRates, measure_input
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.arrays import ArraySource
from pcls.data.sources.folder import open_folder
from pcls.errors import UserError

SMALL = Preprocessing(8, 8, 3, (0.0,) * 3, (1.0,) * 3)
RATES = InputRates(
    {"read": 4000.0, "decode": 1000.0, "crop": 4000.0, "batch": 8000.0, "transfer": 8000.0}, 1250, 2, 2, 53.6, 0
)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr("pcls.data.bench.SECONDS", 0.05)


def test_the_stage_that_takes_most_of_the_time_is_the_limit():
    assert RATES.limit == "decode"
    assert RATES.shares == pytest.approx(
        {"read": 1 / 7, "decode": 4 / 7, "crop": 1 / 7, "batch": 1 / 14, "transfer": 1 / 14}
    )
    assert (RATES.hosts(1250), RATES.hosts(1251), RATES.hosts(20_000)) == (1, 2, 16)


def test_the_table_says_what_limits_and_how_many_hosts_are_needed():
    assert (
        rates_text(RATES, device="cpu", need=20_000)
        == """\
stage       images/s  share of the time on one core
read           4,000  14.3%  53.6 kB an image
decode         1,000  57.1%
crop           4,000  14.3%
batch          8,000   7.1%
transfer       8,000   7.1%  to cpu
together       1,250  with 2 threads on 2 cores
the limit is decode: make the files smaller by `pcls data convert --reencode`, or add cores
20,000 images/s need 16 hosts like this one"""
    )


def test_files_go_through_every_stage_and_what_cannot_be_decoded_is_counted(write_images):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(stream, "JPEG")
    files = {f"{name}/{number}.jpg": stream.getvalue() for name in "ab" for number in range(3)}
    source, _ = open_folder(write_images(files | {"a/4.png": 7, "b/5.jpg": b"no picture"}))
    sent = []
    rates = measure_input(source, SMALL, threads=2, cores=2, transfer=lambda images: sent.append(images.shape))
    assert list(rates.stages) == ["read", "decode", "crop", "batch", "transfer"]
    assert all(rate > 0 for rate in [*rates.stages.values(), rates.together])
    # One file of eight.
    assert 4 <= rates.undecodable <= 32
    assert sent == [(IMAGES - rates.undecodable, 8, 8, 3)] * ROUNDS
    assert 0.5 < rates.kilobytes < len(stream.getvalue()) / 1000


def test_a_set_of_which_nothing_can_be_decoded_is_refused(write_images):
    source, _ = open_folder(write_images({"a/1.jpg": b"no", "b/2.jpg": b"picture"}))
    with pytest.raises(UserError, match=r"none of 128 images can be decoded, .*; pcls data doctor says why"):
        measure_input(source, SMALL, threads=1, cores=2, transfer=lambda images: None)


def test_pixels_in_memory_are_copied_and_sent():
    source = ArraySource(np.zeros((9, 8, 8, 3), np.uint8), np.zeros(9), ("a",), "some")
    rates = measure_input(source, SMALL, threads=0, cores=2, transfer=lambda images: None)
    assert list(rates.stages) == ["batch", "transfer"]
    assert rates.kilobytes == pytest.approx(0.192)
    assert "no thread of its own" in rates_text(rates, device="cpu", need=0)
