"""The report page: what it says is what was measured, and nothing in the data can break or own the page."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pcls.errors import UserError
from pcls.evaluation.charts import (
    MAX_POINTS,
    Curve,
    charts,
    overlaid,
    percent,
    rank_chart,
    short,
    speed_charts,
    thin,
    value_axis,
)
from pcls.evaluation.metrics import Evaluation
from pcls.evaluation.quality import Scores, quality
from pcls.evaluation.report import RunReport, RunsReport, Table, render, report_json, write, write_png
from pcls.evaluation.sections import confusion
from pcls.evaluation.sections.audit import Audit
from pcls.evaluation.sections.calibrated import BeforeAfter, diagram
from pcls.evaluation.sections.confusion import confused_pairs, confusion_order, heat_map, shades
from pcls.evaluation.sections.numbers import balanced_interval, weakest_first
from pcls.evaluation.sections.picture import polylines
from pcls.evaluation.sections.records import MAX_LOSSES, MAX_SUSPECTS, Evidence, Explained, Mistake, bars, top_losses
from pcls.evaluation.sections.speed import speed

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
    names = ("top1", "balanced", "macro_f1", "loss", "n", "undecodable")
    assert exact == [measured.summary()[name] for name in names]
    assert page.texts["data"] == ["90.00\u00a0%", "89.87\u00a0%", "89.74\u00a0%", "0.4375", "100", "3"]
    # R: binom::binom.wilson(90, 100) gives 0.8256 to 0.9448.
    assert page.texts["small"][0] == "95\u00a0%: 82.6–94.5\u00a0%"


def test_the_best_five_are_told_of_more_than_five_classes_alone() -> None:
    pages = [render(report(evaluation=evaluation(np.eye(classes, dtype=np.int64)))) for classes in (5, 6)]
    assert ["Top-5 accuracy" in page for page in pages] == [False, True]


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


def picture_of(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA"))


def test_the_heat_map_paints_hits_blue_and_errors_orange_and_carries_the_counts() -> None:
    counts = np.eye(40, dtype=np.int64) * 10
    counts[3, 30] = 10
    heat = heat_map(evaluation(counts))
    pixels, names = picture_of(heat.image.uri), json.loads(heat.names)
    assert (pixels.shape, heat.image.group, heat.detail, heat.left_out) == ((40, 40, 4), 1, None, 0)
    row, column = names.index("class 3"), names.index("class 30")
    # What is mistaken for each other stands side by side.
    assert abs(row - column) == 1
    assert pixels[0, 0].tolist() == [0, 114, 178, 255]
    assert pixels[row, column, :3].tolist() == [213, 94, 0]
    assert pixels[row, column, 3] > 100
    assert (pixels[..., 3] > 0).sum() == 41
    cells = json.loads(heat.cells)
    assert dict(zip(cells[row][::2], cells[row][1::2], strict=True)) == {row: 10, column: 10}
    assert json.loads(heat.supports)[row] == 20


def test_a_heat_map_of_very_many_classes_groups_them_and_keeps_the_largest_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, most in (("MAX_HEAT", 40), ("MAX_DETAIL", 60), ("MAX_ORDERED", 100), ("MAX_CELLS", 300)):
        monkeypatch.setattr(confusion, name, most)
    counts = np.ones((101, 101), np.int64)
    counts[7, 8] = 1000
    heat = heat_map(evaluation(counts))
    # The last dot stands for two classes, and for one that there is not.
    assert (picture_of(heat.image.uri).shape, heat.image.group, heat.image.side) == ((34, 34, 4), 3, 102)
    assert heat.detail is not None
    assert (picture_of(heat.detail.uri).shape, heat.detail.group, heat.ordered) == ((51, 51, 4), 2, False)
    assert heat.left_out == 101**2 - 300
    assert "8,1000" in heat.cells


def test_a_dot_of_several_classes_is_as_blue_as_its_records_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confusion, "MAX_HEAT", 20)
    counts = np.eye(40, dtype=np.int64) * 10
    # Two classes of which each is taken for the other, always: they share a dot, and none of it is right.
    counts[:2, :2] = [[0, 10], [10, 0]]
    monkeypatch.setattr(confusion, "confusion_order", lambda counts: np.arange(len(counts)))
    pixels = picture_of(heat_map(evaluation(counts)).image.uri)
    assert pixels.shape == (20, 20, 4)
    assert [pixels[0, 0, 3], pixels[1, 1, 3]] == [0, 255]


def test_classes_that_are_confused_are_brought_together() -> None:
    group = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 5))
    counts = np.where(group[:, None] == group, 4, 0) + np.eye(50, dtype=np.int64) * 30
    order = confusion_order(counts)
    assert sorted(order) == list(range(50))
    assert (np.diff(group[order]) != 0).sum() == 9
    assert confusion_order(np.eye(2, dtype=np.int64)).tolist() == [0, 1]
    assert sorted(confusion_order(np.zeros((5, 5), np.int64))) == list(range(5))


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
    html = render(report(mistakes=[mistake()], suspects=[mistake()], facts={"Data": {}}))
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
    assert loss.summary == "Loss by step. Train: 2 at step 0, 0.5 at step 2. Eval: 2 at step 2, 2 at step 2."


def test_the_rate_is_one_of_what_was_trained_on() -> None:
    history = [{"kind": "train", "step": step, "images_per_second": 90.0} for step in range(3)]
    assert charts(history) == []
    assert [chart.title for chart in speed_charts(history)] == ["Images per second"]
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


def test_every_error_can_be_seen_and_no_cell_drowns_its_text() -> None:
    share = np.array([0.0, 1e-6, 1.0])
    assert shades(share, np.array([False] * 3)).tolist() == [0, 0.14, 0.75]
    assert shades(share, np.array([True] * 3)).tolist() == [0, 6e-7, 0.6]


def test_the_largest_losses_come_first_and_unknown_ones_last() -> None:
    label = [0.2, math.nan, 0.001, 0.001]
    sure = [0.8, 0.9, 0.5, 0.9]
    numbered = [mistake(record=str(i), label_probability=label[i], probability=sure[i]) for i in range(4)]
    assert [one.record for one in top_losses(numbered)] == ["3", "2", "0", "1"]
    html = render(report(evaluation=evaluation([[1, 1], [1, 1]]), mistakes=[mistake()] * (MAX_LOSSES + 5)))
    assert len(Page(html).named("img")) == MAX_LOSSES


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
    noise = [mistake(thumbnail=rng.integers(0, 256, (160, 160, 3), dtype=np.uint8)) for _ in range(MAX_LOSSES)]
    picture = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
    explained = [Explained(own, (Evidence(0, picture), Evidence(1, picture))) for own in noise[:8]]
    keys = ("loss", "accuracy", "images_per_second", "lr")
    history = [
        {"kind": kind, "step": step, "epoch": step / 7} | dict.fromkeys((*keys, "top1"), 1 / (step + 1))
        for step in range(20_000)
        for kind in ("train", "eval")
    ]
    measured = replace(measured, train_counts=tuple(range(1000)))
    audit = Audit(names, tuple(range(1000)), tuple(range(1000)), 0, 5, ("odd",))
    html = render(
        report(
            evaluation=measured,
            mistakes=noise,
            history=history,
            suspects=(noise * 2)[:MAX_SUSPECTS],
            explained=explained,
            audit=audit,
        )
    )
    assert len(html.encode()) < 5_000_000
    assert html.count('<tr><td class="number">') == 1000


def test_the_only_script_is_the_one_that_the_policy_names_by_its_digest() -> None:
    few = render(report(evaluation=evaluation([[3, 1], [2, 4]])))
    assert "<script" not in few
    assert "script-src" not in few
    many = render(report(title=HOSTILE, evaluation=evaluation(np.eye(40, dtype=np.int64), (HOSTILE,) * 40)))
    (script,) = re.findall(r"<script>(.*?)</script>", many, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in Page(many).named("meta")[1]["content"]
    assert len(Page(many).named("script")) == 1
    assert json.loads(Page(many).named("figure")[0]["data-names"]) == [HOSTILE] * 40


def test_runs_are_laid_over_each_other_with_a_legend() -> None:
    one = [*train_rows([2.0, 1.0, 0.5]), {"kind": "eval", "step": 2, "epoch": 0.2, "loss": 0.25, "top1": 0.5}]
    histories = {HOSTILE: one, "b": train_rows([4.0, 3.0])}
    loss, accuracy = overlaid(histories)
    assert [(line.title, line.run) for line in loss.lines] == [
        (f"{HOSTILE}, train", 0),
        (f"{HOSTILE}, eval", 0),
        ("b, train", 1),
    ]
    assert loss.y_ticks[-1][1] == "4"
    assert [spot.title for spot in accuracy.lines[0].spots] == [f"{HOSTILE}, eval 50.00\u00a0%\nstep 2, epoch 0.20"]
    html = render(RunsReport("two", "", histories, [Table("Numbers", ("run",), ((HOSTILE,),))]))
    assert [tag["id"] for tag in Page(html).named("section") if "id" in tag] == ["curves"]
    assert 'class="line train run-1"' in html
    assert Page(html).named("script") == []


def test_the_picture_of_the_curves_shows_each_in_its_place_and_colour(tmp_path: Path) -> None:
    history = [*train_rows([2.0, 1.0, 0.0]), {"kind": "eval", "step": 2, "epoch": 0.2, "loss": 2.0, "top1": 0.5}]
    path = write_png(report(history=history), tmp_path / "new" / "curves.png")
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    # Two charts side by side, two pixels a unit.
    assert pixels.shape == (580, 2000, 3)

    def near(x: float, y: float, colour: tuple[int, int, int]) -> bool:
        """Whether a chart's place, in the units of its drawing, has some of a colour."""
        column, row = round(2 * x), round(2 * (34 + y))
        around = pixels[row - 4 : row + 5, column - 4 : column + 5]
        return bool((np.abs(around - colour).max(-1) < 40).any())

    loss = charts(history)[0]
    train, evaluated = loss.lines
    (points,) = polylines(train.path)
    assert [near(*point, (0, 114, 178)) for point in points] == [True] * 3
    assert not near(points[0][0], points[2][1], (0, 114, 178))
    (((x, y),),) = polylines(evaluated.path)
    assert near(x, y, (194, 84, 0))
    runs = RunsReport("", "", {"a": history, "b": train_rows([1.0, 2.0])}, [])
    assert write_png(runs, tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="no curve to draw"):
        write_png(report(), tmp_path / "none.png")


def test_the_pen_of_a_path_is_lifted_at_gaps() -> None:
    assert polylines("M1,2h0L3,4.5M5,6h0") == [[(1, 2), (3, 4.5)], [(5, 6)]]


def test_many_runs_share_the_points_of_a_chart() -> None:
    history = train_rows([1.0 + i % 7 for i in range(3000)])
    (chart,) = overlaid({str(number): history for number in range(8)})
    assert [len(line.spots) for line in chart.lines] == [100] * 8


def test_the_balanced_accuracy_has_an_interval_as_wide_as_its_draws() -> None:
    low, high = balanced_interval(np.array([[90, 10], [20, 80]]))
    # The deviation of the mean of two independent shares.
    deviation = math.sqrt(0.9 * 0.1 / 100 + 0.8 * 0.2 / 100) / 2
    assert (low, high) == pytest.approx((0.85 - 1.96 * deviation, 0.85 + 1.96 * deviation), abs=0.006)
    # All right is not sure to be right.
    assert balanced_interval(np.diag([10, 10]))[0] < 0.98
    assert balanced_interval(np.zeros((2, 2), np.int64)) == (0, 1)


def a_quality(sure: float) -> Any:
    n = 100
    correct = np.arange(n) % 5 > 0
    return quality(Scores(np.full(n, 0.5), np.full(n, 0.2), np.full(n, sure), correct))


def test_a_reliability_diagram_has_each_bin_at_its_confidence_and_accuracy() -> None:
    drawn = diagram("Before", a_quality(0.95))
    (bar,) = drawn.bars
    assert bar.title == "confidence 0.93 to 1.00, 95.0\u00a0% on average: 100 records, 80.0\u00a0% right"
    # Eight down to 208 is the whole: 80 % is 160 high, and 95 % lies 30 above it.
    assert (bar.height, bar.y, bar.ideal) == (160.0, 48.0, 18.0)
    assert drawn.summary == "Before: accuracy by confidence. ECE 0.1500."


def test_calibration_shows_before_and_after_where_it_was_measured() -> None:
    measured = replace(evaluation([[40, 10], [10, 40]]), quality=a_quality(0.9))
    plain = Page(render(report(evaluation=measured)))
    assert [tag["aria-label"] for tag in plain.named("svg") if "reliability" in tag.get("class", "")] == [
        "All records: accuracy by confidence. ECE 0.1000."
    ]
    fit = BeforeAfter("Calibration: temperature 1.5", a_quality(0.95), a_quality(0.8), 50)
    html = render(report(evaluation=replace(measured, calibration="temperature 1.5"), fit=fit))
    labels = [tag["aria-label"] for tag in Page(html).named("svg") if "reliability" in tag.get("class", "")]
    assert labels == ["Before: accuracy by confidence. ECE 0.1500.", "After: accuracy by confidence. ECE 0.0000."]
    assert "50 held-out records that it was not fitted to" in html
    assert "All records, calibrated" in html


def test_the_audit_shows_each_class_or_for_many_the_curve_and_the_ends() -> None:
    few = render(report(audit=Audit(("a", "b"), (300, 10), (30, 5), 2, 7, (HOSTILE,))))
    assert "2: 1 with more than 100 records, 0 with 20 to 100, 1 with fewer" in few
    assert "<dt>largest class / smallest</dt><dd>30.0</dd>" in few
    assert "<dt>names in quarantine</dt><dd>7</dd>" in few
    assert few.count("--share:") == 4
    assert HOSTILE not in few
    names = tuple(f"class {i}" for i in range(40))
    many = render(report(audit=Audit(names, tuple(range(40)), (3,) * 40)))
    assert "Smallest</dt><dd>class 0 (0), class 1 (1)" in many
    assert "Records of each class by class, the largest first. Train: 39 at class 1, 0 at class 40." in many
    unknown = render(report(audit=Audit(("a", "b"), (), (30, 5))))
    assert "Training records" not in unknown


def test_a_rank_chart_has_the_ranks_below_and_no_epochs() -> None:
    chart = rank_chart("Records", {"train": np.array([9, 4, 1])})
    assert chart.x_label == "class, the largest first"
    assert chart.lines[0].spots[0].title == "train 9\nclass 1"


def test_the_time_of_all_starts_of_a_run_is_added_up() -> None:
    def row(step: int, seconds: float, compiled: float) -> dict[str, Any]:
        return {"kind": "goodput", "step": step, "seconds": seconds, "goodput": 0.5, "lost_to_compile": compiled}

    # Two rows of the first process, one of the second.
    found = speed([row(10, 5.0, 2.0), row(20, 9.0, 2.0), row(30, 4.0, 1.0)])
    assert found is not None
    assert (found.seconds, found.processes) == (13.0, 2)
    assert {part.name: part.seconds for part in found.parts if part.seconds} == {"training": 10.0, "compiling": 3.0}
    assert sum(part.share for part in found.parts) == pytest.approx(1)
    assert "in 2 starts" in render(report(history=[row(10, 5.0, 2.0), row(30, 4.0, 1.0)]))
    assert speed([{"kind": "eval", "step": 1, "loss": 1.0}]) is None


def test_the_speed_is_a_median_that_a_stall_does_not_move() -> None:
    rates = [100.0, 101.0, None, math.nan, 99.0, 1.0, 100.0]
    history = [{"kind": "train", "step": i, "images_per_second": rate} for i, rate in enumerate(rates)]
    found = speed(history)
    assert found is not None
    assert (found.rate, found.parts, found.mfu) == (100.0, (), None)


def test_bars_along_time_sum_neighbours_and_keep_their_sign() -> None:
    assert bars((1.0, -2.0), 4.0) == [(0.0, 0.5, 0.25), (0.5, 0.5, -0.5)]
    many = bars(tuple([1.0] * 1120), 1.0)
    assert (len(many), many[0]) == (112, (0.0, 0.0089, 1.0))
    assert bars((), 1.0) == []
    assert bars((0.0,), 0.0) == [(0.0, 1.0, 0.0)]


def test_an_explanation_shows_its_bars_or_its_picture_for_each_class() -> None:
    drawn = Explained(mistake(), (Evidence(1, steps=(0.5, -1.0)), Evidence(0, steps=(0.0, 0.25))), "down")
    painted = Explained(mistake(), (Evidence(1, np.zeros((8, 8, 3), np.uint8)),))
    html = render(
        report(
            evaluation=evaluation([[1, 1], [1, 1]], ("cat", "dog")), explained=[drawn, painted], method="By gradients."
        )
    )
    labels = [tag["aria-label"] for tag in Page(html).named("svg") if tag.get("class") == "strip"]
    assert labels == ["Relevance of each step for dog", "Relevance of each step for cat"]
    # Stretched, so that a step of the picture lies beside its bar.
    assert [("stretched" in tag["class"]) for tag in Page(html).named("img")] == [True, False, False]
    assert "What speaks for dog" in html
    assert "By gradients." in html


def test_the_json_says_what_the_page_says_and_holds_no_picture() -> None:
    suspect = mistake(record="cat/7.jpg", label_probability=0.25)
    whole = report_json(
        report(
            evaluation=replace(evaluation([[90, 2, 0], [5, 1, 2], [0, 0, 7]], ("a", "b", "c")), loss=math.nan),
            mistakes=[suspect, mistake()],
            suspects=[suspect],
            suspects_found=1,
            history=train_rows([1.0]),
            explained=[Explained(suspect, (Evidence(1, steps=(1.0,)),))],
            plan=Table("Plan", ("", "plan"), (("steps", "5"),)),
            audit=Audit(("a",), (1,), (2,)),
        )
    )
    assert whole["confused_pairs"][0] == {"label": "b", "predicted": "a", "count": 5, "share": "62.5\u00a0%"}
    json.dumps(whole, allow_nan=False)
    assert (whole["evaluation"]["loss"], whole["top_losses"][1]["label_probability"]) == (None, None)
    assert whole["top_losses"][:1] == whole["labels_to_check"]["shown"]
    assert whole["top_losses"][0]["label_probability"] == 0.25
    assert whole["explanations"]["records"][0]["evidence"] == [{"of": "b", "steps": [1.0]}]
    assert whole["plan"] == [{"": "steps", "plan": "5"}]
    runs = report_json(RunsReport("t", "", {"a": train_rows([1.0])}, []))
    assert runs["histories"]["a"][0]["loss"] == 1.0


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

    def write_half(self: Path, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("disk gone")

    if broken == "replace":
        monkeypatch.setattr(Path, "replace", fail_to_replace)
    else:
        monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="disk gone"):
        write(report(title="new"), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
