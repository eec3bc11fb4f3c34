"""Threads are chosen by what they read, not by how many there could be."""

import threading
import time

import numpy as np
import pytest

from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.source import Records
from pcls.data.workers import measure_threads, reading_rate

PREPROCESSING = Preprocessing(2, 2, 1, (0.0,), (1.0,))


class Waiting:
    """Reads that take a while, one at a time."""

    def __init__(self):
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return 100

    def read(self, records, preprocessing, draws) -> Records:
        assert draws is None
        with self.lock:
            time.sleep(0.01)
        images = np.zeros((len(records), 2, 2, 1), np.uint8)
        return Records(images, records.astype(np.int32), np.ones(len(records), bool))


@pytest.mark.parametrize(("at_once", "expected"), [(1, 1), (4, 4), (100, 6)])
def test_threads_are_added_for_as_long_as_they_read_more(monkeypatch, at_once, expected):
    monkeypatch.setattr("pcls.data.workers.usable_cores", lambda: 6)
    rates = {1: 100.0, 2: 195.0, 4: 390.0, 6: 590.0}
    monkeypatch.setattr("pcls.data.workers.reading_rate", lambda *args, **_: min(rates[args[2]], 97.5 * at_once))
    measured = measure_threads(Waiting(), PREPROCESSING, random_crop=True)
    assert measured.threads == expected
    # The first that adds nothing is the last that is tried.
    assert list(measured.rates) == ([1, 2] if at_once == 1 else [1, 2, 4, 6])


def test_what_was_measured_is_told(monkeypatch):
    monkeypatch.setattr("pcls.data.workers.usable_cores", lambda: 2)
    monkeypatch.setattr("pcls.data.workers.reading_rate", lambda *_, random_crop: 1500.0 if random_crop else 0)
    text = str(measure_threads(Waiting(), PREPROCESSING, random_crop=True))
    assert text == "input: 1 thread, by a measurement (records/s: 1,500 with 1, 1,500 with 2)"


def test_a_rate_counts_images():
    rate = reading_rate(Waiting(), PREPROCESSING, 2, random_crop=False, seconds=0.2)
    # 16 images in 10 ms or a little more.
    assert 200 < rate < 1700
