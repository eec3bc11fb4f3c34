import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pcls
from pcls.cli import main
from pcls.compression.text import sensitivities_text, slower_text, variants_text
from pcls.errors import UserError
from pcls.pretrained.bundle import WEIGHTS, load_bundle, save_bundle


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def compressed(finished_run, tmp_path_factory):
    """The run in int8, with its bundle elsewhere."""
    out = tmp_path_factory.mktemp("compressed") / "int8"
    return pcls.compress(finished_run, records=40, max_loss=100, out=out, say=lambda text: None)


def test_each_variant_is_measured_on_every_held_out_record(finished_run, compressed):
    before = pcls.evaluate(finished_run)
    assert [variant.name for variant in compressed.variants] == [
        "float32",
        "int8 weights",
        "int8 weights, int8 inputs of 4 layers",
    ]
    assert [variant.evaluation.n for variant in compressed.variants] == [359, 359, 359]
    assert compressed.variants[0].evaluation.top1 == before.top1
    losses = [variant.evaluation.loss for variant in compressed.variants]
    assert losses[0] == pytest.approx(before.loss, rel=1e-6)
    # Rounding changes each of them, a little.
    assert len(set(losses)) == 3
    assert max(losses) - min(losses) < 0.05 * losses[0]
    assert [own.batch for own in compressed.variants[0].latencies] == [1, 32]
    assert all(0 < own.low <= own.median <= own.high for one in compressed.variants for own in one.latencies)


def test_the_file_is_a_quarter_and_says_what_it_holds(finished_run, compressed):
    whole, small = (path / WEIGHTS for path in (finished_run / "bundle", compressed.path))
    assert small.stat().st_size < 0.28 * whole.stat().st_size
    assert compressed.variants[0].file_bytes == whole.stat().st_size
    assert compressed.variants[-1].file_bytes == small.stat().st_size
    bundle = load_bundle(compressed.path)
    assert bundle.quantization.inputs.keys() == {"conv1", "conv2", "dense", "head"}
    assert all(size > 0 for size in bundle.quantization.inputs.values())
    assert bundle.metrics["top1"] == compressed.variants[-1].evaluation.top1
    # The run's own bundle is as it was.
    assert load_bundle(finished_run / "bundle").quantization is None


def test_the_loaded_bundle_predicts_what_was_measured(finished_run, compressed):
    from pcls.data.sources.arrays import open_digits

    images = list(open_digits().read(np.arange(64), load_bundle(compressed.path).preprocessing, None).images)
    small, whole = (pcls.load(path).predict(images) for path in (compressed.path, finished_run))
    rows = [np.array([one.probabilities for one in answers]) for answers in (small, whole)]
    assert 0 < np.abs(rows[0] - rows[1]).max() < 0.05
    assert np.mean(rows[0].argmax(1) == rows[1].argmax(1)) > 0.95


def test_each_layer_by_itself_is_told_the_worst_first_and_kept(compressed):
    layers = compressed.sensitivities
    assert {row.path for row in layers} == {f"{layer}/kernel" for layer in ("conv1", "conv2", "dense", "head")}
    errors = [row.error for row in layers]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] > 0 and errors[0] < 0.1
    assert all(row.records == 40 and row.inputs for row in layers)
    kept = json.loads((compressed.path / "compression.json").read_text())
    assert [row["error"] for row in kept["layers"]] == errors
    assert [row["records"] for row in kept["variants"]] == [359] * 3
    assert layers[0].path in sensitivities_text(layers)
    assert "x " in variants_text(compressed.variants)


def timed(variant, median):
    """The variant with predictions that take so many milliseconds."""
    times = tuple(replace(own, low=0.9 * median, median=median, high=1.1 * median) for own in variant.latencies)
    return replace(variant, latencies=times, evaluation=replace(variant.evaluation, top1=0.9))


def test_integers_for_inputs_that_cost_time_and_gain_nothing_are_told(compressed):
    first, weights, last = (timed(one, ms) for one, ms in zip(compressed.variants, (1.0, 1.0, 2.0), strict=True))
    told = slower_text(replace(compressed, variants=(first, weights, last)))
    assert told.startswith("int8 inputs are slower than float32 on this machine: x 2.00 in batches of 32; ")
    assert told.endswith("--weights-only")
    # As fast, within the noise; or more accurate than weights alone.
    assert not slower_text(replace(compressed, variants=(first, weights, timed(last, 1.1))))
    narrow = replace(last, flops=first.flops // 2)
    assert slower_text(replace(compressed, variants=(first, narrow), sensitivities=())).startswith(
        "fewer FLOPs, and slower than float32 on this machine: x 2.00 in batches of 32; "
    )
    better = replace(last, evaluation=replace(last.evaluation, top1=0.95))
    assert not slower_text(replace(compressed, variants=(first, weights, better)))


def test_what_is_lost_is_refused_and_told(run):
    bundle = load_bundle(run / "bundle")
    params = dict(bundle.params)
    # The same function: the first units of the hidden layer a thousand times smaller, what is made of them as much
    # larger. Beside them the other weights of the head are nothing, in steps of int4.
    for path in ("dense/kernel", "dense/bias"):
        params[path] = np.concatenate([params[path][..., :1] / 1000, params[path][..., 1:]], -1)
    params["head/kernel"] = np.concatenate([params["head/kernel"][:1] * 1000, params["head/kernel"][1:]])
    save_bundle(replace(bundle, params=params), run / "bundle")
    said: list[str] = []
    before = sorted(run.rglob("*"))
    with pytest.raises(UserError, match=r"int4 weights lose .* points of top-1 accuracy on 359 records") as caught:
        pcls.compress(run, bits=4, weights_only=True, records=20, max_loss=0.3, say=said.append)
    assert "--max-loss allows 0.3; nothing was written" in str(caught.value)
    assert sorted(run.rglob("*")) == before
    # What was tried, and how it did.
    table = said[-1].splitlines()
    assert [line.split("  ")[0] for line in table[1:]] == ["float32", "int4 weights"]
    assert "359" in table[2] and "-" in table[2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"records": 0}, "--records 0: a number >= 1 is needed"),
        ({"records": -5}, "--records -5"),
        ({"bits": 3}, "--bits 3: allowed: 8, 4"),
        ({"target": "int2"}, "--target int2: allowed: int8"),
        ({"max_loss": float("nan")}, "--max-loss nan"),
        ({"max_loss": -1}, "--max-loss -1"),
    ],
)
def test_options_that_cannot_be_are_named(finished_run, options, words, refused):
    assert words in refused(finished_run, **options)


def test_a_run_that_is_not_finished_is_refused(run, refused):
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"status": "stopped"}))
    assert f"pcls resume {run}" in refused(run)


def test_a_bundle_is_no_run(finished_run, refused):
    assert "is a bundle; compression needs the run's data" in refused(finished_run / "bundle")


def test_a_bundle_that_is_quantized_already_is_refused(run, compressed, refused):
    shutil.rmtree(run / "bundle")
    shutil.copytree(compressed.path, run / "bundle")
    assert "is quantized already (int8 weights, int8 inputs of 4 layers)" in refused(run)


def test_nothing_but_a_quantized_bundle_is_replaced(run, compressed, tmp_path, refused):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    assert "name another: --out FOLDER" in refused(run, out=tmp_path / "photos")
    assert (tmp_path / "photos" / "a.jpg").is_file()
    assert "name another: --out FOLDER" in refused(run, out=run / "bundle")


def test_a_missing_qwix_is_told_before_anything_is_done(finished_run, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "qwix", None)
    assert "pip install 'pcls[compress]'" in refused(finished_run)


def test_the_command_ends_with_2_and_one_line(finished_run, capsys):
    assert main(["compress", str(finished_run), "--bits", "3"]) == 2
    assert capsys.readouterr().err == "pcls: --bits 3: allowed: 8, 4\n"


def test_the_command_says_what_it_wrote_and_what_that_replaces(finished_run, compressed, tmp_path, capsys):
    out = shutil.copytree(compressed.path, tmp_path / "small")
    assert main(["compress", str(finished_run), "--weights-only", "--max-loss", "100", "--out", str(out)]) == 0
    text, errors = capsys.readouterr()
    assert text.splitlines()[-1] == f"written: {out} (int8 weights); next: pcls predict {out} FILES"
    assert errors.splitlines()[-1] == f"{out}: the compressed bundle that was there is replaced"


def test_training_for_int8_computes_with_rounded_numbers(tiny, finished_run, tmp_path):
    run = pcls.train("digits_cnn", tiny | {"run.dir": str(tmp_path / "run"), "train.quantize": "int8"})
    loss = pcls.evaluate(finished_run).loss
    assert loss != run.evaluation.loss
    assert run.evaluation.loss == pytest.approx(loss, rel=0.05)
