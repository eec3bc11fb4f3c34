import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

import pcls
from pcls.cli import main
from pcls.compression.latency import Latency
from pcls.compression.narrow import Goal, goal_of, without_some
from pcls.compression.narrow import narrowed as narrowing
from pcls.compression.recovery import recovery_recipe, usual_length
from pcls.compression.targets import parse_target
from pcls.compression.text import variants_text
from pcls.config import Recipe
from pcls.config.duration import Duration
from pcls.config.load import load_recipe, with_overrides
from pcls.errors import UserError
from pcls.pretrained.bundle import WEIGHTS, load_bundle
from pcls.run.folder import RunFolder

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def narrowed(finished_run, tmp_path_factory):
    """The run with half of its FLOPs, in two steps, and what was said."""
    said: list[str] = []
    out = tmp_path_factory.mktemp("narrowed") / "half"
    options = {"steps": 2, "finetune": "4 steps", "max_loss": 100, "out": out, "say": said.append}
    return pcls.compress(finished_run, target="flops=0.5", **options), said


def test_the_run_is_narrowed_in_steps_and_each_is_measured(finished_run, narrowed):
    found, said = narrowed
    first, middle, last = found.variants
    assert first.evaluation.top1 == pcls.evaluate(finished_run).top1
    assert 0.6 < middle.flops / first.flops <= 0.5**0.5
    assert 0.43 < last.flops / first.flops <= 0.5
    assert first.parameters > middle.parameters > last.parameters
    assert first.file_bytes > middle.file_bytes > last.file_bytes
    assert [variant.evaluation.n for variant in found.variants] == [359] * 3
    assert not found.sensitivities
    assert sum("4 steps" in text for text in said) == 2


def test_the_new_bundle_holds_its_widths_and_predicts_as_it_was_measured(finished_run, narrowed):
    found, _ = narrowed
    bundle, whole = load_bundle(found.path), load_bundle(finished_run / "bundle")
    assert bundle.definition().parameter_count == found.variants[-1].parameters
    assert sum(bundle.options["widths"]) < 32 + 64 + 64
    assert all(own <= old for own, old in zip(bundle.options["widths"], (32, 64, 64), strict=True))
    assert (found.path / WEIGHTS).stat().st_size == found.variants[-1].file_bytes
    assert bundle.metrics["top1"] == found.variants[-1].evaluation.top1
    assert bundle.class_names == whole.class_names
    assert "widths" not in whole.options

    from pcls.data.sources.arrays import open_digits

    images = list(open_digits().read(np.arange(32), bundle.preprocessing, None).images)
    # A network trained for seconds is right about some, and no two networks give the same.
    own, old = ([one.probabilities for one in pcls.load(path).predict(images)] for path in (found.path, finished_run))
    assert np.abs(np.array(own) - np.array(old)).max() > 1e-4


def test_the_curve_is_kept_as_numbers_and_as_a_picture(narrowed):
    found, _ = narrowed
    kept = json.loads((found.path / "compression.json").read_text())["variants"]
    assert [(row["flops"], row["parameters"], row["top1"]) for row in kept] == [
        (variant.flops, variant.parameters, variant.evaluation.top1) for variant in found.variants
    ]
    picture = ElementTree.parse(found.path / "tradeoff.svg").getroot()
    circles = picture.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 3
    # Fewer FLOPs stand further to the left, and all within the picture.
    across = [float(circle.get("cx")) for circle in circles]
    assert across == sorted(across, reverse=True) and 64 <= across[-1] < across[0] <= 600
    assert all(24 <= float(circle.get("cy")) <= 304 for circle in circles)
    words = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert all(variant.name in words for variant in found.variants)
    table = variants_text(found.variants).splitlines()
    assert "MFLOPs" in table[0] and f"{found.variants[-1].parameters:,}" in table[3]


def test_a_step_that_has_nothing_to_do_is_passed_over(finished_run, tmp_path):
    said: list[str] = []
    options = {"steps": 6, "finetune": "1 steps", "max_loss": 100, "out": tmp_path / "out", "say": said.append}
    found = pcls.compress(finished_run, target="flops=0.9", **options)
    # Its layers are so narrow that the first step removes more than a tenth.
    assert [text.split(":")[0] for text in said if text.startswith("step")] == ["step 1 of 6"]
    assert len(found.variants) == 2
    assert found.variants[1].flops <= 0.9 * found.variants[0].flops


def test_a_compressed_bundle_is_replaced_and_others_are_not(finished_run, narrowed, tmp_path, refused):
    found, _ = narrowed
    out = Path(shutil.copytree(found.path, tmp_path / "old"))
    again = pcls.compress(
        finished_run, target="flops=0.8", steps=1, finetune="1 steps", max_loss=100, out=out, say=lambda text: None
    )
    assert again.path == out and len(again.variants) == 2
    assert load_bundle(out).options["widths"] != load_bundle(found.path).options["widths"]
    # The run's own bundle was not compressed.
    assert "name another: --out FOLDER" in refused(finished_run, target="flops=0.5", out=finished_run / "bundle")
    (tmp_path / "photos").mkdir()
    assert "name another: --out FOLDER" in refused(finished_run, target="flops=0.5", out=tmp_path / "photos")
    (out / "notes.txt").write_text("mine")
    assert "holds notes.txt too" in refused(finished_run, target="flops=0.5", out=out)


def test_who_is_interrupted_while_a_step_is_trained_has_nothing_written(finished_run, stop_after, tmp_path, capsys):
    stop_after(2)
    words = ["--target", "flops=0.5", "--finetune", "4 steps", "--out", str(tmp_path / "out")]
    assert main(["compress", str(finished_run), *words]) == 130
    assert capsys.readouterr().err.endswith("pcls: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_the_card_of_a_pruned_network_tells_of_the_training_and_of_what_was_done_then(finished_run, narrowed):
    whole, bundle = load_bundle(finished_run / "bundle"), load_bundle(narrowed[0].path)
    assert bundle.training.recipe == whole.training.recipe and bundle.training.held_out == whole.training.held_out
    card = (narrowed[0].path / "README.md").read_text(encoding="utf-8")
    before = narrowed[0].variants[0].parameters
    assert f"Compressed afterwards: `--target flops=0.5, from {before:,} parameters`." in card
    assert "when its compression ended" in card


def test_steps_end_where_too_much_is_lost_and_nothing_is_written(finished_run, monkeypatch, refused):
    # A rate that destroys what was learned.
    monkeypatch.setattr("pcls.compression.recovery.RATE", 1e3)
    said: list[str] = []
    options = {"target": "flops=0.5", "steps": 2, "finetune": "4 steps", "max_loss": 0.5, "say": said.append}
    error = refused(finished_run, **options)
    assert "of FLOPs lose" in error and "--max-loss allows 0.5; nothing was written" in error
    assert "a longer --finetune" in error
    assert [text.split(":")[0] for text in said if text.startswith("step")] == ["step 1 of 2"]
    assert said[-1].splitlines()[1].startswith("float32")


def test_a_size_is_reached_by_integers_alone_or_by_narrowing_too(finished_run, tmp_path):
    bundle = load_bundle(finished_run / "bundle")
    whole = (finished_run / "bundle" / WEIGHTS).stat().st_size
    score, silent = "l2", lambda text: None

    def goal(size: float, bits=8):
        return goal_of(parse_target(f"size={size:.0f}B"), bundle, bits, score, silent)

    assert (goal(0.5 * whole).share, goal(0.5 * whole).bits) == (1.0, 8)
    small = goal(0.15 * whole)
    assert small.share < 1 and small.bits == 8
    # Four bits hold in it what eight do not.
    assert goal(0.15 * whole, 4).share > small.share
    with pytest.raises(UserError, match=r"the model as it is has .* bytes; there is nothing to do"):
        goal(whole)
    with pytest.raises(UserError, match="the least that pruning reaches is about"):
        goal(1000)
    found = pcls.compress(
        finished_run,
        target=f"size={0.15 * whole:.0f}B",
        steps=1,
        finetune="2 steps",
        max_loss=100,
        out=tmp_path / "out",
        say=silent,
    )
    assert (found.path / WEIGHTS).stat().st_size <= 0.15 * whole
    assert found.variants[-1].name.endswith("of FLOPs, int8 weights")
    assert load_bundle(found.path).options["widths"] and load_bundle(found.path).quantization.bits == 8


def test_the_last_step_goes_on_until_the_network_fits_and_none_follows_one_that_does(finished_run, tmp_path):
    bundle, said = load_bundle(finished_run / "bundle"), []
    parameters = lambda one: sum(array.size for array in one.params.values())  # noqa: E731

    def steps_of(share: float, most: float, count: int):
        goal = Goal(share, fits=lambda one: parameters(one) <= most * parameters(bundle))
        # Trains nothing.
        recovery = Mock(side_effect=lambda one, folder: (one, None), length="0 steps")
        return list(narrowing(bundle, goal, recovery, count, "l2", lambda evaluation: True, said.append))

    # The share alone would leave more.
    one_step = without_some(bundle, 0.9, "l2")
    assert parameters(one_step) > 0.6 * parameters(bundle)
    (_, small, _) = steps_of(0.9, 0.6, 1)[-1]
    assert parameters(small) <= 0.6 * parameters(bundle)
    assert len(steps_of(0.1, 0.9, 4)) == 1


def test_of_several_that_are_fast_enough_the_widest_is_kept(finished_run, monkeypatch, tmp_path):
    whole = load_bundle(finished_run / "bundle").definition().parameter_count
    # While steps are taken the machine is half as fast as when all are measured in turns.
    monkeypatch.setattr(
        "pcls.compression.narrow._milliseconds", lambda one: 2 * one.definition().parameter_count / whole
    )
    monkeypatch.setattr("pcls.compression.narrow._widest", lambda *_: 0.25)
    monkeypatch.setattr(
        "pcls.compression.work.latencies",
        lambda models, *_: [[Latency(1, definition.parameter_count / whole, 0, 0)] * 2 for definition, *_ in models],
    )
    said: list[str] = []
    options = {"steps": 2, "finetune": "1 steps", "max_loss": 100, "say": said.append, "out": tmp_path / "out"}
    found = pcls.compress(finished_run, target="latency=0.8ms", **options)
    assert any(text.startswith("step 2 of 2") for text in said)
    first, last = found.variants
    assert last.latencies[0].median <= 0.8 < first.latencies[0].median
    assert load_bundle(found.path).definition().parameter_count == last.parameters


def test_a_latency_is_reached_by_the_widest_network_that_does(finished_run, monkeypatch):
    bundle = load_bundle(finished_run / "bundle")
    # As many milliseconds as it has thousands of parameters.
    monkeypatch.setattr("pcls.compression.narrow._milliseconds", lambda one: one.definition().parameter_count / 1000)
    whole = bundle.definition().parameter_count / 1000

    def goal(latency: float):
        return goal_of(parse_target(f"latency={latency:.3f}ms"), bundle, 8, "l2", lambda text: None)

    found = goal(0.5 * whole)
    assert found.bits is None and found.share < 1
    assert without_some(bundle, found.share, "l2").definition().parameter_count / 1000 <= 0.95 * 0.5 * whole
    wider = without_some(bundle, found.share * 2 ** (1 / 8), "l2").definition().parameter_count / 1000
    assert wider > 0.95 * 0.5 * whole
    with pytest.raises(UserError, match="there is nothing to do"):
        goal(1.1 * whole)
    with pytest.raises(UserError, match=r"the least that pruning reaches is about .* ms; ask for more"):
        goal(0.001)


def test_the_training_afterwards_is_short_and_lower_and_has_the_run_as_teacher(finished_run, tmp_path):
    bundle = without_some(load_bundle(finished_run / "bundle"), 0.5, "l2")
    settings = {
        "train.ema_decay": 0.0,
        "optimizer.sparsity.final": 0.5,
        "optimizer.sparsity.end": "11 steps",
        "optimizer.schedule": "one_cycle",
        "optimizer.warmup": "2 steps",
        "optimizer.end_lr": 0.1,
        "optimizer.freeze": [{"match": "conv1"}],
        "distill.teacher": "another",
        "distill.cache": True,
    }
    before = with_overrides(RunFolder(finished_run).recipe(), settings)
    recipe = recovery_recipe(before, bundle, tmp_path, finished_run, Duration(3, "steps"))
    assert recipe.model.widths == tuple(bundle.options["widths"])
    assert recipe.optimizer.lr < before.optimizer.lr and recipe.optimizer.schedule == "cosine"
    assert recipe.distill.teacher == str(finished_run) and not recipe.distill.cache
    assert not recipe.optimizer.freeze and not recipe.optimizer.sparsity.final
    averaged = with_overrides(
        before, {"optimizer.sparsity.final": 0, "optimizer.sparsity.end": None, "train.ema_decay": 0.9}
    )
    assert recovery_recipe(averaged, bundle, tmp_path, finished_run, Duration(3, "steps")).train.ema_decay == 0
    assert str(recipe.train.duration) == "3 steps"
    # What it learns from is the run's.
    assert (recipe.data, recipe.augment) == (before.data, before.augment)
    assert usual_length(before) == Duration(2, "steps")
    assert str(usual_length(load_recipe("digits_cnn"))) == "2 epochs"
    adjusted = with_overrides(before, {"imbalance.posthoc_adjustment": 1.0})
    with pytest.raises(UserError, match="changes the head after training"):
        recovery_recipe(adjusted, bundle, tmp_path, finished_run, Duration(3, "steps"))
    assert isinstance(adjusted, Recipe)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("int8", "int8", 8),
        ("flops=0.25", "flops", 0.25),
        ("size=1MB", "size", 1e6),
        ("size=2.5kB", "size", 2500),
        ("size=800B", "size", 800),
        ("latency=2ms", "latency", 2),
        ("latency=500us", "latency", 0.5),
        ("latency=1.5s", "latency", 1500),
    ],
)
def test_targets_are_read(text, kind, value):
    target = parse_target(text)
    assert (target.kind, target.value, target.text) == (kind, pytest.approx(value), text)
    assert "=" not in target.folder_name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "flops"}, "--target flops: allowed: int8, flops=0.5, size=1MB, latency=2ms"),
        ({"target": "speed=2"}, "--target speed=2: allowed"),
        ({"target": ""}, "--target : allowed"),
        ({"target": "flops=0"}, "above 0 and below 1, as in flops=0.5"),
        ({"target": "flops=1.5"}, "above 0 and below 1"),
        ({"target": "flops=-0.5"}, "allowed"),
        ({"target": "flops=nan"}, "allowed"),
        ({"target": "flops=0.5MB"}, "above 0 and below 1"),
        ({"target": "size=1"}, "with B, kB, MB, GB is needed, as in size=1MB"),
        ({"target": "size=0MB"}, "a number above 0"),
        ({"target": "size=1ms"}, "as in size=1MB"),
        ({"target": "latency=2"}, "with us, ms, s is needed, as in latency=2ms"),
        ({"target": "flops=0.5", "steps": 0}, "--steps 0: 1 to 100"),
        ({"target": "flops=0.5", "finetune": "soon"}, "--finetune soon: a length is needed"),
        ({"target": "flops=0.5", "finetune": "0 epochs"}, "--finetune 0 epochs: a length is needed"),
        ({"target": "flops=0.5", "score": "luck"}, "--score luck: allowed: l2, l1, scale"),
        ({"target": "flops=0.5", "score": "scale"}, "no scale of a BatchNorm follows conv1"),
        ({"target": "flops=0.5", "bits": 4}, "--bits has no effect with --target flops=0.5"),
        ({"target": "flops=0.5", "weights_only": True}, "--weights-only has no effect"),
        ({"target": "size=1kB", "records": 3}, "--records has no effect"),
        ({"target": "int8", "steps": 2}, "--steps has no effect with --target int8"),
        ({"target": "int8", "finetune": "1 epochs"}, "--finetune has no effect"),
        ({"target": "int8", "score": "l1"}, "--score has no effect"),
        ({"target": "flops=0.0001"}, "with the fewest channels"),
    ],
)
def test_what_cannot_be_asked_for_is_told_and_nothing_is_written(finished_run, options, words, refused):
    assert words in refused(finished_run, **options)


def test_a_recurrent_network_is_refused_before_anything_is_trained(tiny, tmp_path, refused):
    run = pcls.train("digits_cnn", tiny | {"run.dir": str(tmp_path / "run"), "model.name": "rnn28"}).path
    assert "rnn28 cannot be pruned" in refused(run, target="flops=0.5")
    assert "rnn28 cannot be pruned" in refused(run, target="latency=1us")
    (run / "status.json").write_text(json.dumps({"status": "stopped"}))
    assert f"pcls resume {run}" in refused(run, target="flops=0.5")


def test_the_command_ends_with_2_and_one_line(finished_run, capsys):
    assert main(["compress", str(finished_run), "--target", "flops=2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pcls: --target flops=2: a share to keep is needed") and error.count("\n") == 1
