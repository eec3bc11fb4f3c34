"""The page: complete in itself, bounded in size, safe with any name, and readable in a real browser."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcls.data.doctor.checks import examine
from pcls.data.doctor.page import SHOWN_PICTURES, page
from pcls.data.doctor.survey import Survey, survey
from pcls.data.sources.arrays import ArraySource

EVIL = "<script>document.title = 'owned'<"


@pytest.fixture
def seen(examined, encoded) -> Survey:
    files = {f"train/{name}/{i}.jpg": 100 * label + i for label, name in enumerate(("cat", EVIL)) for i in range(10)}
    files |= {
        f"val/{name}/{i}.jpg": 1000 + 10 * label + i for label, name in enumerate(("cat", EVIL)) for i in range(2)
    }
    files |= {f"train/cat/copy{i}.jpg": 3 for i in range(9)} | {
        "val/cat/leak.jpg": 4,
        f"train/cat/{'long' * 50}.jpg": b"",
    }
    return examined(files | {f"train/cat/{EVIL}.png": encoded(5000, "PNG")[:99]})


def test_the_page_escapes_names_and_loads_nothing(seen):
    html = page(seen, examine(seen), EVIL)
    assert "<script" not in html
    assert html.count("&lt;script&gt;document.title") == 4
    assert set(re.findall(r"(?:src|href)=\"([a-z]+:)", html)) == {"data:"}
    assert "no picture" in html


def test_the_number_of_thumbnails_is_bounded():
    same = ArraySource(
        np.tile(np.arange(784, dtype=np.uint8).reshape(28, 28, 1), (500, 1, 1, 1)), np.zeros(500), ("a",), "t"
    )
    seen = survey({"train": same}, workers=1)
    html = page(seen, examine(seen), "t")
    assert html.count("<img") == 4
    flat = ArraySource(
        np.zeros((500, 40, 40, 1), np.uint8) + np.arange(500)[:, None, None, None].astype(np.uint8),
        np.zeros(500),
        ("a",),
        "t",
    )
    seen = survey({"train": flat}, workers=1)
    findings = [finding for finding in examine(seen) if finding.kind == "flat"]
    html = page(seen, findings, "t")
    assert html.count("<img") == SHOWN_PICTURES
    assert f"and {500 - SHOWN_PICTURES} more" in html


def test_a_picture_that_has_gone_since_is_left_out(seen, tmp_path):
    findings = examine(seen)
    (tmp_path / "val/cat/leak.jpg").unlink()
    (tmp_path / "train/cat/copy0.jpg").write_bytes(b"")
    assert page(seen, findings, "t").count("no picture") == 4


@pytest.fixture
def visit(browser, seen, tmp_path) -> Iterator[Any]:
    file = tmp_path / "doctor.html"
    file.write_text(page(seen, examine(seen), "photos"))
    tab = browser.new_page()
    yield tab, file
    tab.close()


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)". Source: WCAG 2.2."""
    channels = np.array([float(c) for c in colour.strip("rgb()").split(",")]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.browser
def test_a_browser_shows_it_on_screens_of_any_width_in_light_and_dark(visit: tuple[Any, Path]) -> None:
    tab, file = visit
    complaints, requests = [], []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(file.as_uri())
    assert tab.title() == "photos"
    assert tab.eval_on_selector_all("img", "all => Math.min(...all.map(image => image.naturalWidth))") > 0
    targets = tab.eval_on_selector_all(".contents a", "all => all.map(a => !!document.querySelector(a.hash))")
    assert targets == [True] * len(targets) and len(targets) >= 3
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        for width in (320, 768, 1280):
            tab.set_viewport_size({"width": width, "height": 900})
            assert tab.evaluate("document.documentElement.scrollWidth") <= width, (width, scheme)

        def colour(selector: str, name: str = "color") -> float:
            return luminance(tab.eval_on_selector(selector, f"element => getComputedStyle(element)['{name}']"))

        ground = colour("body", "backgroundColor")
        assert (ground > 0.5) == (scheme == "light")
        for selector in ("body", ".subtitle", ".contents a", ".serious .level", ".warning .level", ".record", ".more"):
            text = colour(selector)
            assert (max(ground, text) + 0.05) / (min(ground, text) + 0.05) >= 4.5, (selector, scheme)
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
