"""The report page in a real browser: it loads alone, without a complaint, and fits narrow and wide screens."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcls.evaluation.metrics import Evaluation
from pcls.evaluation.quality import Scores, quality
from pcls.evaluation.report import RunReport, RunsReport, Table, write
from pcls.evaluation.sections.audit import Audit
from pcls.evaluation.sections.calibrated import BeforeAfter
from pcls.evaluation.sections.records import Evidence, Explained, Mistake

pytestmark = pytest.mark.browser

LONG = "data/" + "a_name_without_any_place_to_break_" * 6 + ".jpg"


def a_report(classes: int) -> RunReport:
    rng = np.random.default_rng(classes)
    confusion = rng.poisson(1.0, (classes, classes)) + np.diag(rng.integers(100, 2000, classes))
    n = int(confusion.sum())
    names = ("<script>document.title = 'owned'</script>", LONG, *(f"class {i}" for i in range(2, classes)))
    history: list[dict[str, Any]] = []
    for step in range(0, 3000, 3):
        loss = None if 900 < step < 1000 else 2.3 / (1 + step / 100)
        rates = {"accuracy": step / 3000, "images_per_second": 4000.0, "data_wait": 0.01, "lr": 1e-3}
        history.append({"kind": "train", "step": step, "epoch": step / 300, "loss": loss} | rates)
        if step % 300 == 0:
            history.append({"kind": "eval", "step": step, "epoch": step / 300, "loss": 1.5, "top1": step / 3000})
    lost = {f"lost_to_{cause}": 1.5 for cause in ("compile", "idle", "data", "checkpoint", "evaluation")}
    history.append({"kind": "goodput", "step": 2999, "seconds": 30.0, "goodput": 0.75} | lost)
    sure = rng.uniform(0.3, 1.0, 500)
    measured = quality(Scores(-np.log(sure), 1 - sure, sure, rng.uniform(0, 1, 500) < sure**2))
    assert measured is not None
    pictures = [rng.integers(0, 256, (28, 28, channels), dtype=np.uint8) for channels in (1, 3)]
    shown = [Mistake(picture, LONG, 0, 1, 0.9, 0.05) for picture in pictures]
    evidence = (Evidence(1, steps=tuple(rng.normal(size=28))), Evidence(0, pictures[1]))
    counts = tuple(rng.integers(5, 200, classes).tolist())
    return RunReport(
        title=f"run with {classes} classes",
        subtitle=LONG,
        evaluation=Evaluation(
            *(n, 1, 0.5, float(np.trace(confusion)) / n, 0.99, confusion, names, measured, counts, "temperature 1.3")
        ),
        history=history,
        mistakes=shown,
        facts={"Data": {"path": LONG}, "Recipe": {LONG: "1e-3"}},
        tables=[Table("Candidates", ("recipe", "top-1"), ((LONG, "97.2 %"),), LONG)],
        audit=Audit(names, counts, counts, 1, 3, (LONG,)),
        fit=BeforeAfter("Calibration: temperature 1.3", measured, measured, 250),
        suspects=shown[:1],
        suspects_found=30,
        explained=[Explained(shown[0], evidence, "down")],
        method="Gradient times input.",
        plan=Table("Plan and what happened", ("", "plan", "happened"), (("steps", "3,000", "3,000"),)),
    )


def several_runs() -> RunsReport:
    histories = {name: [*a_report(3).history] for name in ("first", LONG, "third")}
    return RunsReport(" · ".join(histories), "", histories, [Table("Numbers", ("run", "top-1"), ((LONG, "97.2 %"),))])


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("reports")
    single = {classes: write(a_report(classes), folder / f"{classes}.html") for classes in (3, 30, 120)}
    # 0: several runs.
    return single | {0: write(several_runs(), folder / "0.html")}


class Visit:
    """A page opened from disk, with what the browser complained about and asked for."""

    def __init__(self, browser: Any, path: Path, *, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.page.close()

    def style(self, selector: str, name: str) -> str:
        style = self.page.eval_on_selector(selector, f"element => getComputedStyle(element)['{name}']")
        return str(style)


@pytest.mark.parametrize("classes", [3, 120])
def test_the_page_loads_alone_and_without_a_complaint(browser: Any, written: dict[int, Path], classes: int) -> None:
    with Visit(browser, written[classes]) as visit:
        assert visit.complaints == []
        assert [url for url in visit.requests if not url.startswith("data:")] == [written[classes].as_uri()]
        assert visit.page.title() == f"run with {classes} classes"
        pictures = visit.page.eval_on_selector_all("img", "all => all.map(image => image.naturalWidth)")
        # Losses, a label to check, an explanation and its picture.
        assert pictures == [28] * 5


def test_every_section_has_a_visible_heading_that_the_contents_lead_to(browser: Any, written: dict[int, Path]) -> None:
    with Visit(browser, written[3]) as visit:
        headings = visit.page.locator("h2")
        titles = ["Results", "Candidates", "Data", "Curves", "Calibration", "Confusion", "Classes", "Top losses"]
        titles += ["Labels to check", "Explanations", "Speed", "Facts"]
        assert headings.all_inner_texts() == titles
        assert all(headings.nth(i).is_visible() for i in range(len(titles)))
        targets = visit.page.eval_on_selector_all("nav a", "all => all.map(a => !!document.querySelector(a.hash))")
        assert targets == [True] * len(titles)


def test_the_confusion_matrix_shows_each_count(browser: Any, written: dict[int, Path]) -> None:
    measured = a_report(3).evaluation
    assert measured is not None
    with Visit(browser, written[3]) as visit:
        rows = visit.page.eval_on_selector_all(
            ".matrix tbody tr", "rows => rows.map(row => [...row.querySelectorAll('td')].map(cell => cell.innerText))"
        )
        assert [[int(text.replace(",", "")) for text in row] for row in rows] == measured.confusion.tolist()
        assert visit.page.locator(".matrix tbody td").first.is_visible()
        # The shade is set by an inline style: a policy that blocked those would leave the cell clear.
        assert visit.style(".matrix td.hit", "backgroundColor").startswith("rgba(0, 114, 178, 0.")


def test_the_curves_are_drawn_and_answer_the_pointer(browser: Any, written: dict[int, Path]) -> None:
    with Visit(browser, written[3]) as visit:
        assert visit.page.locator("svg.plot[role=img]").count() == 7
        label = visit.page.locator("svg.plot").first.get_attribute("aria-label")
        assert label.startswith("Loss by step. Train: 2.3 at step 0")
        # A band near the loss of 0.5, where the curve of the evaluations, at 1.5, is far from the pointer.
        band = visit.page.locator("svg.plot").first.locator(".spot.train").nth(60)
        title = band.text_content()
        assert re.fullmatch(r"train 0\.\d+\nstep \d+, epoch 1\.\d+", title)
        band.scroll_into_view_if_needed()
        box = band.bounding_box()
        under_pointer = "([x, y]) => document.elementFromPoint(x, y).textContent"
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.9
        assert visit.page.evaluate(under_pointer, [x, y]) == title


@pytest.mark.parametrize("classes", [0, 3, 30, 120])
def test_nothing_overflows_sideways(browser: Any, written: dict[int, Path], classes: int) -> None:
    with Visit(browser, written[classes]) as visit:
        for width, scheme in [(400, "light"), (400, "dark"), (1280, "light"), (1280, "dark")]:
            visit.page.set_viewport_size({"width": width, "height": 900})
            visit.page.emulate_media(color_scheme=scheme)
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width, (width, scheme)
            assert visit.page.locator("h1").is_visible()
        assert visit.complaints == []


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)". Source: WCAG 2.2."""
    channels = np.array([float(c) for c in colour.strip("rgb()").split(",")]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(browser: Any, written: dict[int, Path], scheme: str) -> None:
    with Visit(browser, written[3], scheme=scheme) as visit:
        page = luminance(visit.style("body", "backgroundColor"))
        assert (page > 0.5) == (scheme == "light")
        selectors = ("body", ".note", "nav a", ".headline dt", ".alarming data", ".matrix .corner", ".wrong b")
        for selector in (*selectors, ".between", ".part", ".pairs-of dt"):
            text = luminance(visit.style(selector, "color"))
            assert (max(page, text) + 0.05) / (min(page, text) + 0.05) >= 4.5, selector


def test_scroll_areas_can_be_reached_and_scrolled_by_keyboard(browser: Any, written: dict[int, Path]) -> None:
    with Visit(browser, written[120]) as visit:
        area = visit.page.locator(".scroll.tall")
        area.focus()
        visit.page.keyboard.press("End")
        # Waited for from here: the page's policy forbids the browser to evaluate a condition again and again.
        until = time.monotonic() + 5
        while not (scrolled := area.evaluate("element => element.scrollTop")) and time.monotonic() < until:
            visit.page.wait_for_timeout(20)
        assert scrolled > 0
        assert area.locator("tbody tr").count() == 120


def test_the_map_of_many_classes_is_moved_over_and_zoomed_by_keyboard(browser: Any, written: dict[int, Path]) -> None:
    confusion = a_report(120).evaluation.confusion
    with Visit(browser, written[120]) as visit:
        page, plane, told = visit.page, visit.page.locator(".heat .map"), visit.page.locator(".heat output")
        assert told.inner_text().startswith("Point at the map, or move on it by the arrow keys.")
        names = page.eval_on_selector(".heat", "figure => JSON.parse(figure.dataset.names)")
        assert plane.get_attribute("viewBox") == "0 0 120 120"
        plane.focus()
        for key in ("Shift+ArrowDown", "ArrowRight", "+", "+"):
            page.keyboard.press(key)
        assert plane.get_attribute("viewBox") == "1.125 7.875 30 30"
        assert f"label {names[10]}, predicted {names[1]}:" in told.inner_text()
        # Close enough for names beside the map.
        assert page.locator(".heat .name").count() == 60
        page.keyboard.press("n")
        errors = np.where(np.eye(120, dtype=bool), 0, confusion)
        assert f": {errors.max()} of " in told.inner_text()
        page.keyboard.press("0")
        assert plane.get_attribute("viewBox") == "0 0 120 120"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Zoom in"
        page.keyboard.press("Enter")
        assert plane.get_attribute("viewBox").endswith(" 60 60")
        assert visit.complaints == []


def test_the_map_tells_what_is_under_the_pointer_and_the_wheel_scrolls_the_page_until_it_is_clicked(
    browser: Any, written: dict[int, Path]
) -> None:
    evaluation = a_report(120).evaluation
    counts = dict(zip(evaluation.class_names, evaluation.confusion, strict=True))
    with Visit(browser, written[120]) as visit:
        page, plane, told = visit.page, visit.page.locator(".heat .map"), visit.page.locator(".heat output")
        names = page.eval_on_selector(".heat", "figure => JSON.parse(figure.dataset.names)")
        frame = page.locator(".heat .frame")
        frame.scroll_into_view_if_needed()
        box = frame.bounding_box()
        # The middle of a cell: row 30, column 60.
        x, y = box["x"] + box["width"] * 60.5 / 120, box["y"] + box["height"] * 30.5 / 120
        page.mouse.move(x, y)
        row, column = names[30], names[60]
        count, n = counts[row][evaluation.class_names.index(column)], counts[row].sum()
        share = f" of {n:,} ({100 * count / n:.1f} %)" if count else ""
        assert told.inner_text() == f"label {row}, predicted {column}: {count:,}{share}"
        page.mouse.wheel(0, -1)
        page.wait_for_timeout(50)
        assert plane.get_attribute("viewBox") == "0 0 120 120"
        y = frame.bounding_box()["y"] + box["height"] * 30.5 / 120
        page.mouse.click(x, y)
        page.mouse.wheel(0, -100)
        page.wait_for_timeout(50)
        # The cell stays under the pointer.
        left, top, size, _ = (float(value) for value in plane.get_attribute("viewBox").split())
        assert size == 96
        assert (left + size * 60.5 / 120, top + size * 30.5 / 120) == pytest.approx((60.5, 30.5), abs=0.3)


def test_without_scripts_the_map_is_whole_and_has_no_buttons(browser: Any, written: dict[int, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(written[120].as_uri())
    assert page.locator(".heat image").is_visible()
    assert not page.locator(".heat .tools").is_visible()
    assert not page.locator(".heat output").is_visible()
    assert page.locator("#pairs-title").is_visible()
    context.close()


def test_a_script_that_is_not_the_reports_own_is_refused(
    browser: Any, written: dict[int, Path], tmp_path: Path
) -> None:
    page = written[120].read_text(encoding="utf-8")
    path = tmp_path / "changed.html"
    path.write_text(page.replace("</main>", "</main><script>document.title = 'owned'</script>"), encoding="utf-8")
    with Visit(browser, path) as visit:
        assert visit.page.title() == "run with 120 classes"
        assert any("Content Security Policy" in complaint for complaint in visit.complaints)


def test_print_is_light_and_shows_all_of_a_scrolling_table(browser: Any, written: dict[int, Path]) -> None:
    with Visit(browser, written[120], scheme="dark") as visit:
        visit.page.emulate_media(media="print", color_scheme="dark")
        assert luminance(visit.style("body", "backgroundColor")) == pytest.approx(1.0)
        assert visit.style(".scroll.tall", "overflowY") == "visible"
        assert visit.style("nav", "display") == "none"


@pytest.mark.parametrize("classes", [0, 30, 120])
def test_print_fits_on_a4(browser: Any, written: dict[int, Path], classes: int) -> None:
    with Visit(browser, written[classes]) as visit:
        # 210 mm less two margins of 10 mm, at 96 dots an inch.
        visit.page.set_viewport_size({"width": 718, "height": 1000})
        visit.page.emulate_media(media="print")
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 718
