"""The same conversion by Apache Beam, on its DirectRunner; skipped where Beam is not installed: `make test-beam`."""

import importlib.util
import logging

import numpy as np
import pytest
from PIL import Image

from pcls.config import Recipe, with_overrides
from pcls.data.convert import convert
from pcls.data.convert_beam import beam_runner
from pcls.data.dataset import data_settings, open_source
from pcls.data.sources.arrayrecord import Reencoding
from pcls.errors import UserError

has_beam = importlib.util.find_spec("apache_beam") is not None
needs_beam = pytest.mark.skipif(not has_beam, reason="Apache Beam is not installed: make test-beam")
# Beam, and what it imports, warn about themselves.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def log_levels():
    """The runner quiets Beam for its whole process."""
    level = logging.getLogger("apache_beam").level
    yield
    logging.getLogger("apache_beam").setLevel(level)


@pytest.fixture
def section(tmp_path):
    """A folder of 24 files in two parts."""
    rng = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / "photos" / ("train" if number < 18 else "val") / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(path)
    return with_overrides(Recipe(), data_settings(str(tmp_path / "photos"))).data


@needs_beam
def test_beam_writes_the_same_bytes_as_threads_and_goes_on_with_their_work(section, tmp_path):
    options = {"description": "photos", "shards": 6, "reencoding": Reencoding(longest_side=12, quality=90)}
    convert(*open_source(section), tmp_path / "threads", **options)
    runner = beam_runner(section, workers=2)

    def interrupt(records):
        if len(list((tmp_path / "beam").glob("*.array_record"))) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(*open_source(section), tmp_path / "beam", **options, workers=1, advance=interrupt)
    tasks = []
    convert(*open_source(section), tmp_path / "beam", **options, runner=lambda todo: (tasks.extend(todo), runner(todo)))
    # Six shards and two of the evaluation's, of which three were there.
    assert len(tasks) == 5
    found = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("threads", "beam")]
    assert len(found[0]) == 6 + 2 + 3
    assert found[0] == found[1]


@needs_beam
@pytest.mark.faults
def test_a_full_disk_under_beam_is_told_in_a_line(section, small_disk, monkeypatch):
    monkeypatch.setattr("pcls.data.convert._check_space", lambda out, needed: None)
    (small_disk / "ballast").write_bytes(bytes(500 << 10))
    with pytest.raises(UserError) as raised:
        convert(
            *open_source(section), small_disk / "set", description="photos", shards=3, runner=beam_runner(section, 1)
        )
    text = str(raised.value)
    assert text.startswith(f"{small_disk}/set/")
    assert text.endswith(
        ".array_record: cannot be written (No space left on device); "
        "make room and run the same command again: it goes on"
    )


@pytest.mark.skipif(has_beam, reason="Apache Beam is installed")
def test_a_missing_beam_is_told_with_what_to_install(section):
    with pytest.raises(UserError) as raised:
        beam_runner(section)
    assert str(raised.value) == "--runner beam needs Apache Beam: pip install 'pcls[beam]'"
