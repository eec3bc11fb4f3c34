"""Public weights, fine-tuned: each step at the size that is its own."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import pcls
from pcls.cli import main
from pcls.data.dataset import open_dataset
from pcls.data.preprocessing import Preprocessing, TrainingSize
from pcls.data.sources.arrays import open_digits
from pcls.models.registry import MODELS, define_model
from pcls.models.resnet import BasicBlock, ResNet
from pcls.pretrained.bundle import Bundle, load_bundle, save_bundle
from pcls.pretrained.exporting import export_timm
from pcls.pretrained.importing import import_bundle
from pcls.run.evaluate import read_evaluation
from pcls.run.folder import RunFolder

DIGITS = tuple("0123456789")
FEW = {
    "train.duration": "2 steps",
    "train.batch_size": 16,
    "evaluate.every": "2 steps",
    "evaluate.batch_size": 64,
    "checkpoint.every": "2 steps",
    "optimizer.lr": 1e-4,
}


@pytest.fixture(scope="module", autouse=True)
def small_resnet18():
    """One block instead of eight: a tenth of the compilation."""
    with pytest.MonkeyPatch.context() as patch:
        small = replace(MODELS["resnet18"], build=partial(ResNet, BasicBlock, (1, 0, 0, 0)))
        patch.setitem(MODELS, "resnet18", small)
        yield


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """resnet18 for digits, as an import writes it: trained at 32 pixels, tested at 48."""
    import jax

    root = tmp_path_factory.mktemp("imported")
    definition = define_model("resnet18", height=32, width=32, channels=3, classes=len(DIGITS))
    params, stats = jax.device_get(jax.jit(definition.init)(jax.random.key(0)))
    seen = Preprocessing(48, 48, 3, (0.5,) * 3, (0.25,) * 3, 0.9, "squash", train=TrainingSize(32, 32, 0.8))
    origin = {"name": "resnet18.mine", "licence": "mit"}
    export_timm(Bundle("resnet18", DIGITS, seen, "float32", params, stats, {}, origin=origin), root / "timm")
    save_bundle(import_bundle(str(root / "timm")), root / "bundle")
    return root / "bundle"


@pytest.fixture(scope="module")
def tuned(imported, tmp_path_factory):
    path = tmp_path_factory.mktemp("tuned") / "run"
    return pcls.finetune("digits", imported, FEW | {"run.dir": str(path)}, keep_head=True)


def test_a_run_trains_at_one_size_evaluates_at_the_other_and_says_so(imported, tuned, capsys, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:

        def stop(*arguments):
            raise KeyboardInterrupt

        patch.setattr("pcls.run.session.train_loop", stop)
        with pytest.raises(KeyboardInterrupt):
            pcls.finetune("digits", imported, FEW | {"run.dir": str(tmp_path / "run")})
    told = capsys.readouterr().err
    assert "1,438 images 32 x 32 x 3, 10 classes, 359 held out and evaluated at 48 x 48; " in told
    dataset = open_dataset(RunFolder(tuned.path).recipe().data, load_bundle(tuned.path / "bundle").preprocessing)
    assert dataset.train.read(np.arange(1), dataset.preprocessing.training, None).images.shape == (1, 32, 32, 3)
    assert dataset.evaluation.read(np.arange(1), dataset.preprocessing, None).images.shape == (1, 48, 48, 3)


def test_predictions_are_those_of_the_evaluation(tuned):
    """At the test size too: the same picture at the size of training would get other probabilities."""
    _, predictions = read_evaluation(RunFolder(tuned.path))
    recipe = RunFolder(tuned.path).recipe()
    names = open_dataset(recipe.data).evaluation
    digits = open_digits().images
    chosen = [int(names.name(record).rpartition("#")[2]) for record in range(32)]
    answers = pcls.load(tuned).predict([digits[record] for record in chosen])
    order = np.argsort(predictions.records)[:32]
    np.testing.assert_allclose(
        [answer.probability for answer in answers], predictions.probability[order], rtol=1e-3, atol=1e-5
    )
    assert pcls.evaluate(tuned).top1 == pytest.approx(tuned.evaluation.top1, abs=1e-9)


def test_the_bundle_of_a_run_keeps_where_its_weights_came_from_and_both_sizes(imported, tuned):
    found, start = load_bundle(tuned.path / "bundle"), load_bundle(imported)
    assert found.origin == start.origin
    assert found.origin["name"] == "resnet18.mine"
    # Digits lie in memory, where pictures are seen whole.
    assert found.preprocessing.train == TrainingSize(32, 32, 1.0)
    assert (found.preprocessing.height, found.preprocessing.crop_pct) == (48, 1.0)
    assert found.preprocessing.mean == start.preprocessing.mean


def test_a_run_from_scratch_has_no_origin(finished_run):
    assert load_bundle(finished_run / "bundle").origin == {}


def test_a_head_that_must_be_kept_is_refused_for_other_classes(imported, tmp_path, capsys):
    argv = ["finetune", "digits", "--model", str(imported), "--keep-head", "data.classes=[5,6,7]"]
    assert main([*argv, f"run.dir={tmp_path}/run", "train.batch_size=16"]) == 2
    words = "--keep-head: the data has 3 classes, and of the weights '0' is missing in it (10 classes); leave it out"
    captured = capsys.readouterr()
    assert words in captured.err
    assert len(captured.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_one_size_that_the_user_names_holds_for_all(imported):
    from pcls.transfer.finetune import fine_tuning

    recipe = fine_tuning("digits", imported, {"data.image_size": 40}).recipe
    seen = open_dataset(recipe.data, load_bundle(imported).preprocessing).preprocessing
    assert (seen.shape, seen.training.shape) == ((40, 40, 3), (40, 40, 3))


def test_the_facts_of_an_imported_bundle_are_plain_text(imported):
    facts = json.loads((imported / "model.json").read_text())
    assert facts["origin"]["licence"] == "mit"
    assert facts["preprocessing"]["train"] == {"height": 32, "width": 32, "crop_pct": 0.8}
