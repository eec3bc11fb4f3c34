"""The demonstration, with one short model and two seeds."""

import json
from pathlib import Path

import pytest

from pcls.config import flat_recipe
from pcls.errors import UserError
from pcls.run.folder import RunFolder
from pcls.transfer import demo
from pcls.transfer.demo import Trial, as_text, run_demo, summary

pytestmark = pytest.mark.system


def test_the_table_gives_means_deviations_and_the_gain_of_the_pairs() -> None:
    table = summary({"digits_cnn": [Trial(0.99, 0.95, 0.93), Trial(0.99, 0.91, 0.87)]}, counted=871)
    assert table.rows == (("digits_cnn", "93.0 ± 2.8 %", "90.0 ± 4.2 %", "3.0 ± 1.4 points"),)
    assert "871 images" in table.note
    assert as_text(table).splitlines()[2] == "digits_cnn  93.0 ± 2.8 %  90.0 ± 4.2 %  3.0 ± 1.4 points"


def test_the_demo_trains_all_arms_on_the_same_images_and_writes_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "SEEDS", (0, 1))
    monkeypatch.setattr(demo, "FEW_SHOT", {"digits_cnn": {"train.duration": "5 steps", "augment.shift": 3}})
    monkeypatch.chdir(tmp_path)
    page = run_demo()
    assert page == Path("runs/demo/report.html")
    told = capsys.readouterr().out
    assert "digits_cnn, seed 1: pretrained " in told
    assert f"report: {page}" in told
    html = page.read_text(encoding="utf-8")
    assert "Digits 5-9 from 5 labelled images a class" in html
    assert "fine-tuned" in html
    for arm in ("finetuned", "scratch"):
        evaluation = json.loads(Path(f"runs/demo/digits_cnn-0-{arm}/evaluation.json").read_text())
        assert evaluation["n"] == 871
        assert evaluation["class_names"] == ["5", "6", "7", "8", "9"]
    finetuned, scratch = (
        flat_recipe(RunFolder(f"runs/demo/digits_cnn-0-{arm}").recipe()) for arm in ("finetuned", "scratch")
    )
    differing = {key for key, value in finetuned.items() if scratch[key] != value}
    assert differing == {
        "run.dir",
        "data.channels",
        "model.init",
        "transfer.head",
        "transfer.skip",
        "optimizer.lr_scale",
    }


def test_the_demo_leaves_a_used_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty; remove it or name another"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
