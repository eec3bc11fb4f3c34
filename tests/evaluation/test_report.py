"""The report page: what it says is what was measured, and nothing in the data can break or own the page."""

from __future__ import annotations

import base64
import io
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pcls.evaluation.charts import MAX_POINTS, Curve, charts, percent, short, thin, value_axis
from pcls.evaluation.metrics import Evaluation
from pcls.evaluation.report import (
    MAX_MISTAKES,
    Mistake,
    RunReport,
    Table,
    confused_pairs,
    heat_map,
    most_confident,
    render,
    shades,
    weakest_first,
    wilson,
    write,
)

HOSTILE = "<script>alert(1)</script>\"'&"


def evaluation(confusion: list[list[int]] | np.ndarray, names: tuple[str, ...] | None = None) -> Evaluation:
    counts = np.asarray(confusion)
    n = int(counts.sum())
    names = names or tuple(f"class {i}" for i in range(len(counts)))
    top1 = float(np.trace(counts)) / n if n else 0.0
    return Evaluation(n=n, undecodable=3, loss=0.4375, top1=top1, top5=0.96875, confusion=counts, class_names=names)


def report(**parts: Any) -> RunReport:
    defaults: dict[str, Any] = {
        "title": "a run",
        "subtitle": "",
        "evaluation": None,
        "history": [],
        "mistakes": [],
        "facts": {},
    }
    return RunReport(**(defaults | parts))


def mistake(**parts: Any) -> Mistake:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    defaults: dict[str, Any] = {"thumbnail": grey, "record": "r0", "label": 0, "predicted": 1, "probability": 0.75}
    return Mistake(**(defaults | parts))


def train_rows(values: list[Any], key: str = "loss") -> list[dict[str, Any]]:
    return [{"kind": "train", "step": step, "epoch": step / 10, key: value} for step, value in enumerate(values)]


def curve(values: np.ndarray) -> Curve:
    steps = np.arange(len(values), dtype=np.float64)
    return Curve("train", steps, steps / 100, values)


class Page(HTMLParser):
    """Every tag of a page with its attributes, and the text inside each tag name."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open.pop() != tag:  # Tags without an end, such as meta, close with what is around them.
            pass

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.setdefault(self._open[-1], []).append(data)

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_a_class_named_like_a_script_comes_out_as_text() -> None:
    html = render(
        report(
            title=HOSTILE,
            subtitle=HOSTILE,
            evaluation=evaluation([[3, 1], [2, 4]], (HOSTILE, "b")),
            mistakes=[mistake(record=HOSTILE)],
            facts={HOSTILE: {HOSTILE: HOSTILE}},
            tables=[Table(HOSTILE, (HOSTILE,), ((HOSTILE,),), HOSTILE)],
        )
    )
    page = Page(html)
    assert page.named("script") == []
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;" in html
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_a_record_name_that_is_not_utf8_can_be_written(tmp_path: Path) -> None:
    name = "caf\udce9.jpg"  # What os.fsdecode makes of Latin-1.
    path = write(report(evaluation=evaluation([[1, 1], [0, 2]]), mistakes=[mistake(record=name)]), tmp_path / "r.html")
    assert "caf\\udce9.jpg" in path.read_text(encoding="utf-8")


def test_the_page_refers_to_nothing_outside_itself() -> None:
    html = render(
        report(evaluation=evaluation([[3, 1], [2, 4]]), mistakes=[mistake()], history=train_rows([1.0, 0.5, 0.25]))
    )
    page = Page(html)
    references = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "xlink:href", "data", "action", "poster")
    ]
    assert references
    assert [value for value in references if not value.startswith(("#", "data:"))] == []
    assert not re.search(r"@import|url\(|https?://", html)
    assert "default-src 'none'" in next(tag["content"] for tag in page.named("meta") if "http-equiv" in tag)


def test_the_numbers_on_the_page_are_those_of_the_evaluation() -> None:
    measured = evaluation([[30, 2, 0], [1, 40, 4], [0, 3, 20]])
    page = Page(render(report(evaluation=measured)))
    exact = [float(tag["value"]) for tag in page.named("data")]
    names = ("top1", "top5", "balanced", "macro_f1", "loss", "n", "undecodable")
    assert exact == [measured.summary()[name] for name in names]
    assert page.texts["data"] == ["90.00\u00a0%", "96.88\u00a0%", "89.87\u00a0%", "89.74\u00a0%", "0.4375", "100", "3"]


def test_each_count_of_the_confusion_matrix_is_in_its_cell() -> None:
    counts = np.array([[30, 2, 0], [1, 40, 4], [0, 3, 2000]])
    page = Page(render(report(evaluation=evaluation(counts, ("a", "b", "c")))))
    titles = [tag["title"] for tag in page.named("td") if "title" in tag]
    assert len(titles) == 9
    assert titles[1] == "label a, predicted b: 2 (6.2\u00a0% of the label)"
    assert titles[8] == "label c, predicted c: 2,000 (99.9\u00a0% of the label)"
    assert [float(text.replace(",", "")) for text in page.texts["td"][:9]] == counts.ravel().tolist()


def test_many_classes_get_a_picture_and_the_pairs_but_no_figures() -> None:
    html = render(report(evaluation=evaluation(np.eye(31, dtype=np.int64) * 5 + np.eye(31, k=1, dtype=np.int64))))
    assert 'class="matrix' not in html
    assert "Confusion matrix of 31 classes as a heat map" in html
    assert html.count("Most confused pairs") == 1
    assert len(re.findall(r'<td class="words">class \d+</td><td class="words">class \d+</td>', html)) == 20


def test_the_heat_map_groups_classes_and_paints_hits_blue_and_errors_orange() -> None:
    counts = np.eye(1000, dtype=np.int64) * 10
    counts[0, 999] = 10
    heat = heat_map(evaluation(counts))
    picture = Image.open(io.BytesIO(base64.b64decode(heat.image.partition(",")[2])))
    assert (picture.size, heat.group) == ((250, 250), 4)
    pixels = np.asarray(picture)
    assert pixels[9, 9].tolist() == [0, 114, 178, 255]
    assert pixels[0, 249, :3].tolist() == [213, 94, 0]
    assert pixels[0, 249, 3] > 100
    assert pixels[5, 9, 3] == 0


def test_confused_pairs_are_ordered_by_count_and_leave_out_hits_and_zeros() -> None:
    pairs = confused_pairs(evaluation([[90, 2, 0], [5, 1, 2], [0, 0, 7]], ("a", "b", "c")))
    assert [(pair.label, pair.predicted, pair.count) for pair in pairs] == [("b", "a", 5), ("a", "b", 2), ("b", "c", 2)]
    assert pairs[0].share == "62.5\u00a0%"


def test_a_faultless_model_is_told_so() -> None:
    assert "No record was misclassified." in render(report(evaluation=evaluation([[3, 0], [0, 4]])))


def test_the_weakest_class_comes_first_and_absent_classes_last_with_dashes() -> None:
    measured = evaluation([[9, 1, 0], [5, 5, 0], [0, 0, 0]])
    assert [number for number, _ in weakest_first(measured)] == [1, 0, 2]
    last_row = render(report(evaluation=measured)).rpartition('<tr><td class="number">2</td>')[2].partition("</tr>")[0]
    assert last_row.count(">–<") == 3


def test_an_empty_evaluation_renders() -> None:
    html = render(report(evaluation=evaluation([[0, 0], [0, 0]])))
    assert "Records counted" in html
    assert "nan" not in Page(html).texts["data"]


def test_sections_without_content_are_left_out() -> None:
    html = render(report(mistakes=[mistake()], facts={"Data": {}}))
    assert Page(html).named("section") == []
    html = render(report(history=train_rows([1.0]), facts={"Data": {"source": "digits"}}))
    assert [tag["id"] for tag in Page(html).named("section")] == ["curves", "facts"]


def test_thinning_keeps_both_ends_and_the_mean() -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    thinned = thin(curve(values))
    assert len(thinned.value) == MAX_POINTS
    assert (thinned.step[0], thinned.value[0]) == (0, values[0])
    assert (thinned.step[-1], thinned.value[-1]) == (99_999, values[-1])
    assert abs(thinned.value[1:-1].mean() - values.mean()) < 1e-4
    assert (np.diff(thinned.step) > 0).all()


def test_few_points_are_not_thinned() -> None:
    values = np.arange(float(MAX_POINTS))
    assert thin(curve(values)).value.tolist() == values.tolist()


def test_thinning_averages_around_a_nan_and_leaves_a_gap_where_all_are() -> None:
    values = np.ones(40_000)
    values[1000:1002] = np.nan
    values[20_000:20_400] = np.nan
    thinned = thin(curve(values)).value
    assert np.nanmin(thinned) == np.nanmax(thinned) == 1
    assert 1 <= np.isnan(thinned).sum() <= 4


def test_a_curve_lifts_its_pen_at_values_that_are_missing_or_not_finite() -> None:
    bad: list[Any] = [None, math.nan, math.inf, "NaN", True, 10**400, 1e200]
    history = train_rows([4.0, 3.0, *bad, 2.0, *bad, 1.0, 1.0])
    del history[2]["loss"]
    (chart,) = charts(history)
    (line,) = chart.lines
    assert line.path.count("M") == 3
    assert len(line.spots) == 5
    assert chart.notes == ("14 of 19 train rows hold no finite value.",)
    assert "nan" not in line.path


def test_a_history_without_a_finite_value_says_so_instead_of_drawing() -> None:
    html = render(report(history=train_rows([None, math.nan])))
    assert "2 of 2 train rows hold no finite value." in html
    assert 'class="plot"' not in html


@pytest.mark.parametrize(
    "history",
    [
        [{}],
        [{"kind": "train"}],
        [{"kind": "train", "step": None, "loss": 1.0}],
        [{"kind": "eval", "step": 5, "top1": 0.5}],
        [{"kind": "train", "step": 0, "loss": 0.0}],
        [{"kind": "train", "step": 0, "loss": -1.0}, {"kind": "train", "step": 1, "loss": 1e99}],
        [{"kind": "train", "step": 0, "loss": 1e-300}, {"kind": "train", "step": 1, "loss": 1e-299}],
        [{"kind": "train", "step": 0, "accuracy": 0.9}, {"kind": "train", "step": 1, "accuracy": 0.9 + 2e-16}],
        [{"kind": "other", "step": 1, "loss": 1.0}],
    ],
)
def test_odd_histories_render(history: list[dict[str, Any]]) -> None:
    html = render(report(history=history))
    for svg in re.findall(r"<svg class=\"plot\".*?</svg>", html, flags=re.S):
        ET.fromstring(svg)
        assert not re.search(r"\b(nan|inf)\b", svg)


def test_a_step_repeated_after_a_resume_counts_once_with_its_later_value() -> None:
    history = [*train_rows([5.0, 4.0, 9.0]), {"kind": "train", "step": 2, "epoch": 0.2, "loss": 3.0}]
    (chart,) = charts(history)
    assert [spot.title.split("\n")[0] for spot in chart.lines[0].spots] == ["train 5", "train 4", "train 3"]


def test_train_and_eval_share_a_chart_and_their_axes() -> None:
    history = [*train_rows([2.0, 1.0, 0.5]), {"kind": "eval", "step": 2, "epoch": 0.2, "loss": 2.0, "top1": 0.5}]
    loss, accuracy = charts(history)
    train, evaluated = loss.lines
    assert train.spots[0].y == evaluated.spots[0].y == {text: y for y, text in loss.y_ticks}["2"]
    assert evaluated.spots[0].title == "eval 2\nstep 2, epoch 0.20"
    assert (accuracy.title, [line.name for line in accuracy.lines]) == ("Accuracy", ["eval"])
    assert loss.summary == "Loss over steps. Train: 2 at step 0, 0.5 at step 2. Eval: 2 at step 2, 2 at step 2."


def test_the_rate_is_one_of_what_was_trained_on() -> None:
    history = [{"kind": "train", "step": step, "images_per_second": 90.0} for step in range(3)]
    assert [chart.title for chart in charts(history)] == ["Images per second"]
    assert "Sequences per second" in render(report(history=history, records="sequences"))


def test_a_loss_over_three_powers_of_ten_gets_a_logarithmic_axis() -> None:
    (chart,) = charts(train_rows([2.0, 0.1, 0.001]))
    assert chart.title == "Loss, logarithmic"
    assert [text for _, text in chart.y_ticks] == ["1e-3", "0.01", "0.1", "1", "10"]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.2, 2.3, (0, 1, 2, 3)),
        (0.0, 1e-3, (0, 2.5e-4, 5e-4, 7.5e-4, 1e-3)),
        (0.5, 0.5, (0, 0.2, 0.4, 0.6)),
        (0.0, 0.0, (0, 0.25, 0.5, 0.75, 1)),
    ],
)
def test_axes_end_on_round_ticks_around_the_data(low: float, high: float, ticks: tuple[float, ...]) -> None:
    assert value_axis(low, high, from_zero=True, may_log=False).ticks == pytest.approx(ticks)


def test_numbers_are_written_short() -> None:
    numbers = (0, 0.25, 2.5e-4, 1500, 20_000, 1_250_000, 3e12, -2e-5)
    assert [short(v) for v in numbers] == ["0", "0.25", "2.5e-4", "1,500", "20k", "1.25M", "3e12", "-2e-5"]
    assert (percent(0.5), percent(math.nan)) == ("50.00\u00a0%", "–")


def test_the_interval_is_wilsons() -> None:
    # R: binom::binom.wilson(90, 100) gives 0.8256 to 0.9448.
    assert wilson(0.9, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert wilson(1.0, 10)[1] == 1


def test_every_error_can_be_seen_and_no_cell_drowns_its_text() -> None:
    share = np.array([0.0, 1e-6, 1.0])
    assert shades(share, np.array([False] * 3)).tolist() == [0, 0.14, 0.75]
    assert shades(share, np.array([True] * 3)).tolist() == [0, 6e-7, 0.6]


def test_the_surest_mistakes_come_first_and_unknown_probabilities_last() -> None:
    sure = [0.2, math.nan, 0.9, 0.5]
    shown = most_confident([mistake(record=str(i), probability=p) for i, p in enumerate(sure)])
    assert [m.record for m in shown] == ["2", "3", "0", "1"]
    html = render(report(evaluation=evaluation([[1, 1], [1, 1]]), mistakes=[mistake()] * (MAX_MISTAKES + 5)))
    assert len(Page(html).named("img")) == MAX_MISTAKES


@pytest.mark.parametrize("channels", [1, 3])
def test_a_thumbnail_survives_as_png_pixel_for_pixel(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, channels), dtype=np.uint8)
    html = render(report(evaluation=evaluation([[1, 1], [1, 1]]), mistakes=[mistake(thumbnail=pixels)]))
    uri = Page(html).named("img")[0]["src"]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,")))))
    assert (shown.reshape(pixels.shape) == pixels).all()


@pytest.mark.parametrize(
    ("shape", "dtype"), [((8, 8, 1), np.float32), ((8, 8), np.uint8), ((8, 8, 4), np.uint8), ((0, 8, 1), np.uint8)]
)
def test_a_thumbnail_of_another_form_is_refused_by_name(shape: tuple[int, ...], dtype: type) -> None:
    with pytest.raises(ValueError, match=r"thumbnail of cat/7\.jpg is .* uint8 \[height, width, 1 or 3\] is needed"):
        mistake(thumbnail=np.zeros(shape, dtype), record="cat/7.jpg")


def test_a_mistake_of_an_unknown_class_shows_its_number() -> None:
    html = render(report(evaluation=evaluation([[1, 1], [1, 1]]), mistakes=[mistake(label=-1, predicted=7)]))
    assert "predicted <b>7</b>" in html
    assert "label <b>-1</b>" in html


def test_a_table_aligns_numbers_and_refuses_ragged_rows() -> None:
    rows = (("head only", "91.2 %", "1,200 ms"), ("all", "97.2 ± 0.3 %", "—"))
    page = Page(render(report(tables=[Table("Candidates", ("recipe", "top-1", "time"), rows)])))
    assert [tag.get("class", "") for tag in page.named("th")] == ["", "number", "number"]
    with pytest.raises(ValueError, match="row 1 has 1 cells; 2 are needed"):
        Table("t", ("a", "b"), (("1", "2"), ("1",)))


def test_a_thousand_classes_and_a_long_history_stay_below_five_megabytes() -> None:
    rng = np.random.default_rng(0)
    names = tuple(f"n{i:08d} a synset name of usual length, and a synonym" for i in range(1000))
    measured = evaluation(rng.integers(0, 9, (1000, 1000)), names)
    # Noise is what PNG compresses worst.
    noise = [mistake(thumbnail=rng.integers(0, 256, (160, 160, 3), dtype=np.uint8)) for _ in range(MAX_MISTAKES)]
    keys = ("loss", "accuracy", "images_per_second", "lr")
    history = [
        {"kind": kind, "step": step, "epoch": step / 7} | dict.fromkeys((*keys, "top1"), 1 / (step + 1))
        for step in range(20_000)
        for kind in ("train", "eval")
    ]
    html = render(report(evaluation=measured, mistakes=noise, history=history))
    assert len(html.encode()) < 5_000_000
    assert html.count('<tr><td class="number">') == 1000


def test_write_returns_its_path_makes_the_folder_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "run" / "report.html"
    assert write(report(title="naïve"), path) == path
    assert "<h1>naïve</h1>" in path.read_text(encoding="utf-8")
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("broken", ["replace", "write"])
def test_a_write_that_fails_leaves_the_old_report_and_no_leftovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    path = write(report(title="old"), tmp_path / "report.html")
    before = path.read_bytes()

    def fail_to_replace(self: Path, target: Path) -> None:
        raise OSError("disk gone")

    def write_half(self: Path, text: str, **_: object) -> None:
        self.write_bytes(text.encode()[: len(text) // 2])
        raise OSError("disk gone")

    if broken == "replace":
        monkeypatch.setattr(Path, "replace", fail_to_replace)
    else:
        monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(OSError, match="disk gone"):
        write(report(title="new"), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
