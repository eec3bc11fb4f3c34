"""Runs on sequences of several lengths: trained, stopped, resumed, evaluated, fine-tuned and predicted with."""

import json

import numpy as np
import pytest

import pcls
from pcls.config import Recipe, with_overrides
from pcls.data.dataset import open_dataset
from pcls.observe.sinks import read_metrics
from pcls.planning.plan import plan_recipe
from pcls.planning.text import plan_text
from pcls.pretrained.bundle import load_bundle
from pcls.run import session
from pcls.run.evaluate import Evaluator, read_evaluation, saved_preprocessing
from pcls.run.folder import RunFolder
from pcls.run.report import run_report
from pcls.run.setup import prepare
from pcls.training.program import Program

STEPS = 12


def archive(path, counts=(48, 22), longest=5, seed=0) -> str:
    """Sequences of 2 features that rise, fall or stay, and noise; 2 to `longest` steps."""
    rng, arrays = np.random.default_rng(seed), {"class_names": np.array(["falls", "rises", "stays"])}
    for prefix, count in zip(("", "test_"), counts, strict=True):
        lengths, labels = rng.integers(2, longest + 1, count), np.arange(count) % 3
        lengths[:2] = 2, longest
        slopes = np.repeat(np.array([-1.0, 1.0, 0.0])[labels], lengths)
        ramp = np.concatenate([np.arange(n) for n in lengths]) * slopes
        arrays |= {f"{prefix}lengths": lengths, f"{prefix}labels": labels}
        arrays[f"{prefix}values"] = np.stack([ramp, rng.normal(40, 5, len(ramp))], 1) + rng.normal(
            0, 0.2, (len(ramp), 2)
        )
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A function from a run's folder and overrides to its recipe."""
    data = archive(tmp_path_factory.mktemp("data") / "ramps.npz")

    def make(path, **overrides) -> Recipe:
        settings = {
            "run.dir": str(path),
            "data.source": "sequences",
            "data.path": data,
            "data.buckets": 2,
            "model.name": "rnn",
            "model.hidden": 8,
            "train.duration": f"{STEPS} steps",
            "train.batch_size": 8,
            "optimizer.lr": 0.03,
            "evaluate.every": "6 steps",
            "checkpoint.every": "4 steps",
        }
        return with_overrides(Recipe(), settings | overrides)

    return make


@pytest.fixture(scope="module")
def compiled():
    """The kinds of updates that were compiled, of the finished run."""
    return []


@pytest.fixture(scope="module")
def finished(recipe, compiled, tmp_path_factory):
    compile_kind = Program.train_step_of

    def noting(program, kind):
        compiled.append(kind.update.height)
        return compile_kind(program, kind)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Program, "train_step_of", noting)
        return pcls.train(recipe(tmp_path_factory.mktemp("finished") / "run")).path


def setup_of(path):
    folder = RunFolder(path)
    return prepare(folder.recipe(), saved_preprocessing(folder))


def test_training_compiles_one_program_for_each_bucket(finished, compiled):
    padded = setup_of(finished).dataset.padded
    assert len(padded) == 2
    assert sorted(compiled) == list(padded)


def test_evaluation_compiles_one_program_for_each_bucket_and_counts_every_record_once(finished):
    setup = setup_of(finished)
    evaluator, state = Evaluator(setup), setup.initial_state()
    for _ in range(2):
        evaluation, predictions = evaluator(*state.deliverable)
    assert evaluator._step._cache_size() == len(setup.dataset.evaluation_buckets) == 2
    assert evaluation.n == 22
    assert predictions.records.tolist() == list(range(22))
    assert predictions.labels.tolist() == setup.dataset.evaluation.labels.tolist()


def test_no_number_of_an_evaluation_depends_on_buckets_or_batches(finished, recipe):
    expected, _ = read_evaluation(RunFolder(finished))
    state = setup_of(finished).initial_state(_weights(finished))
    for buckets, batch_size in ((1, 24), (3, 8)):
        overrides = {"data.buckets": buckets, "evaluate.batch_size": batch_size}
        evaluation, _ = Evaluator(prepare(recipe(finished, **overrides)))(*state.deliverable)
        assert evaluation.top1 == expected.top1
        assert evaluation.loss == pytest.approx(expected.loss, rel=1e-6)


def _weights(path):
    bundle = load_bundle(RunFolder(path).bundle)
    return dict(bundle.params), dict(bundle.stats)


def test_something_is_learned(finished):
    losses = [row["loss"] for row in read_metrics(finished) if row["kind"] == "eval"]
    assert losses[-1] < losses[0] < 1.2


def test_a_stopped_run_resumes_to_the_same_bits(finished, recipe, tmp_path, stop_after, final_state, monkeypatch):
    records, placed = [], session.placed

    def noting(setup, batch):
        records.append(batch.record.tolist())
        return placed(setup, batch)

    monkeypatch.setattr(session, "placed", noting)
    path = tmp_path / "run"
    stop_after(5)
    with pytest.raises(pcls.RestartRequested):
        pcls.train(recipe(path))
    stop_after(0)
    run = pcls.resume(path)
    order = setup_of(path).order
    assert records == [order.records_of_step(number)[0].tolist() for number in range(STEPS)]
    found, expected = final_state(path), final_state(finished)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    evaluation, _ = read_evaluation(RunFolder(finished))
    assert run.evaluation.summary() == evaluation.summary()
    assert pcls.evaluate(path).summary() == evaluation.summary()


def test_predictions_are_those_of_the_evaluation(finished):
    setup = setup_of(finished)
    _, expected = read_evaluation(RunFolder(finished))
    stored = setup.dataset.evaluation.__getitems__(range(22))
    found = pcls.load(finished).predict([image for image, _ in stored])
    names = setup.dataset.class_names
    assert [answer.label for answer in found] == [names[number] for number in expected.predicted]
    np.testing.assert_allclose([answer.probability for answer in found], expected.probability, rtol=1e-5)


def test_the_bundle_says_what_the_sequences_are_and_how_the_network_is_made(finished):
    facts = json.loads((RunFolder(finished).bundle / "model.json").read_text())
    assert facts["options"] == {"hidden": 8}
    assert facts["preprocessing"]["sequence"]["kind"] == "values"
    assert (facts["preprocessing"]["height"], facts["preprocessing"]["width"]) == (5, 2)


def test_the_report_draws_mistaken_sequences(finished):
    report = run_report(finished)
    assert report.facts["Data"]["training sequences"] == "48"
    for mistake in report.mistakes:
        # Features upwards, time to the right.
        assert mistake.thumbnail.shape[0] == 2
        assert 2 <= mistake.thumbnail.shape[1] <= 5
        assert mistake.thumbnail.dtype == np.uint8
    assert report.method.startswith("Gradient times input")
    assert "time goes to the right" in report.method
    for explained in report.explained:
        assert explained.time == "right"
        # One relevance a step that counts.
        assert {len(part.steps) for part in explained.evidence} == {explained.shown.thumbnail.shape[1]}
        assert any(part.steps != (0.0,) * len(part.steps) for part in explained.evidence)


def test_longer_sequences_are_learned_from_its_weights(finished, tmp_path, capsys):
    data = archive(tmp_path / "others.npz", (16, 6), longest=7, seed=1)
    few = {"run.dir": str(tmp_path / "tuned"), "train.batch_size": 8, "train.duration": "2 steps"}
    run = pcls.finetune(data, finished, few, recipe="full")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["data", "model", "plan", "rates", "time"]
    assert lines[5].startswith("weights: 5 of 5 arrays taken over")
    tuned, base = load_bundle(RunFolder(run.path).bundle), load_bundle(RunFolder(finished).bundle)
    assert tuned.options == base.options == {"hidden": 8}
    assert tuned.preprocessing.height == 7
    assert tuned.preprocessing.mean == base.preprocessing.mean
    assert run.evaluation.n == 6


def test_weights_of_another_architecture_are_refused(finished, recipe, tmp_path):
    wrong = recipe(tmp_path / "run", **{"model.init": str(finished), "model.hidden": 9})
    with pytest.raises(pcls.UserError, match=r"trained with model.hidden=8, do not fit the model: 4 of another shape"):
        pcls.train(wrong)


def test_a_model_of_one_length_keeps_that_of_its_weights(recipe, tmp_path):
    short, one = archive(tmp_path / "short.npz", (16, 8), longest=4), {"data.buckets": 1, "model.hidden": 0}
    rows = recipe(tmp_path / "run", **one, **{"model.name": "rnn28", "data.path": short})
    pretrained = open_dataset(rows.data).preprocessing
    longer = archive(tmp_path / "longer.npz", (16, 8), longest=6)
    with pytest.raises(
        pcls.UserError, match="the weights of rnn28 see sequences of 4 steps, and the longest here has 6"
    ):
        prepare(with_overrides(rows, {"data.path": longer}), pretrained)
    shorter = archive(tmp_path / "shorter.npz", (16, 8), longest=3)
    setup = prepare(with_overrides(rows, {"data.path": shorter}), pretrained)
    assert setup.dataset.padded == (4,)
    assert setup.batch_shapes.image.shape[1] == 4


def test_a_sequence_that_is_not_finite_counts_as_undecodable(recipe, tmp_path):
    with np.load(recipe("x").data.path) as arrays:
        changed = dict(arrays)
    changed["values"][changed["lengths"][:3].sum()] = np.nan
    np.savez(tmp_path / "nan.npz", **changed)
    nan = {"data.path": str(tmp_path / "nan.npz"), "data.buckets": 1}
    with pytest.raises(pcls.UserError) as raised:
        pcls.train(recipe(tmp_path / "run", **nan))
    assert str(raised.value) == (
        f"{tmp_path}/nan.npz values #3 holds a value that is not finite at step 0; 1 of 48 sequences skipped, limit "
        "0.10% (data.max_undecodable); mend them, list them in data.quarantine, or raise the limit"
    )


@pytest.mark.parametrize("overrides", [{}, {"data.buckets": 1, "data.on_device": True}])
def test_a_plan_compiles_the_step_of_the_longest_sequences(recipe, overrides):
    plan = plan_recipe(recipe("x", **overrides), "cpu-8", largest=False, say=lambda text: None)
    assert plan.program.batch_shapes.image.shape == (8, 5, 2, 1)
    assert plan.attempt.costs.flops > 0
    lines = plan_text(plan).splitlines()
    assert lines[0] == "rnn on cpu-8 (8 devices): 8 sequences a step, 1 a device"
    assert any(line.startswith("a sequence     ") for line in lines)
    told = "steps          5: all figures are of the bucket of the longest sequences"
    assert (told in lines) == (plan.recipe.data.buckets > 1)
