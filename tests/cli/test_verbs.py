"""What the verbs print, and the codes that they end with."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import pcls
from pcls.cli import main
from pcls.cli.data import statistics_text

VERBS = [
    ["train"],
    ["resume"],
    ["finetune"],
    ["eval"],
    ["calibrate"],
    ["compress"],
    ["compare"],
    ["replay"],
    ["predict"],
    ["serve"],
    ["export"],
    ["report"],
    ["plan"],
    ["bench"],
    ["demo"],
    ["checkpoints", "list"],
    ["checkpoints", "verify"],
    ["checkpoints", "prune"],
    ["checkpoints", "copy"],
    ["config", "show"],
    ["config", "diff"],
    ["models", "list"],
    ["advise"],
    ["probe"],
    ["lr"],
    ["sweep"],
    ["models", "info"],
    ["models", "search"],
    ["models", "import"],
    ["models", "export"],
    ["data", "info"],
    ["data", "show"],
    ["data", "bench"],
    ["data", "doctor"],
    ["data", "imbalance"],
    ["data", "convert"],
    ["launch", "local"],
    ["launch", "ssh"],
    ["launch", "slurm"],
    ["launch", "tpu-vm"],
    ["launch", "queued"],
    ["launch", "jobset-tpu"],
    ["launch", "jobset-gpu"],
    ["launch", "xpk"],
    ["launch", "sky"],
]


@pytest.fixture
def said(capsys):
    """A function that runs a command line and returns its exit code, output lines and error lines."""

    def run(*argv):
        code = main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return run


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_the_help_of_every_verb_has_an_example_of_that_verb(verb, said):
    code, lines, _ = said(*verb, "--help")
    assert code == 0
    assert re.search(rf"Example: pcls {' '.join(verb)}\b", " ".join(" ".join(lines).split()))


def test_every_verb_is_in_this_test(said):
    _, lines, _ = said("--help")
    commands = lines[next(place for place, line in enumerate(lines) if line.startswith("Commands")) + 1 :]
    listed = {line.split()[0] for line in commands if re.match(r"  \w", line)}
    assert listed == {verb[0] for verb in VERBS}


def test_eval_prints_one_json_object_for_scripts(finished_run, said):
    code, lines, _ = said("eval", finished_run, "--json")
    assert (code, len(lines)) == (0, 1)
    summary = json.loads(lines[0])
    assert summary.keys() >= {"n", "top1", "loss"}
    assert summary["n"] == 359
    assert 0 <= summary["top1"] <= 1
    assert summary["loss"] > 0


def test_eval_prints_the_same_numbers_for_people(finished_run, said):
    code, lines, _ = said("eval", finished_run)
    assert code == 0
    found = {line.split()[0]: line.split()[1] for line in lines if line}
    assert found["n"] == "359"
    assert float(found["top1"]) == pytest.approx(pcls.evaluate(finished_run).top1, abs=5e-5)


@pytest.fixture
def images(tmp_path):
    Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)).save(tmp_path / "ä.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "ä.png").read_bytes()[:40])
    return tmp_path / "ä.png", tmp_path / "cut.png"


def test_predict_prints_a_json_object_a_line(finished_run, images, said):
    code, lines, errors = said("predict", finished_run, *images, "--format", "jsonl")
    good, bad = map(json.loads, lines)
    assert list(good) == list(bad) == ["path", "label", "probability", "error"]
    assert (good["path"], good["error"]) == (str(images[0]), "")
    assert good["label"] in "0123456789"
    assert 0.1 <= good["probability"] <= 1
    assert (bad["path"], bad["label"], bad["probability"]) == (str(images[1]), None, None)
    assert bad["error"]
    assert (code, errors) == (2, ["pcls: 1 of 2 files could not be read"])


def test_predict_of_good_images_ends_with_0_and_prints_a_table(finished_run, images, said):
    code, lines, errors = said("predict", finished_run, images[0])
    assert (code, errors) == (0, [])
    assert re.fullmatch(rf"{re.escape(str(images[0]))} +\d+\.\d%  \d", lines[0])


def test_models_info_shows_the_parameter_count(said):
    code, lines, _ = said("models", "info", "cnn28")
    assert code == 0
    assert "121930" in "\n".join(lines).replace(",", "").replace("_", "")


def test_models_info_says_how_a_linear_recurrence_runs(said):
    _, lines, _ = said("models", "info", "lru")
    assert "recurrence      sequential on this machine's devices; model.form may say parallel" in lines


@pytest.mark.system
def test_models_list_names_every_model_with_its_count(said):
    _, lines, _ = said("models", "list")
    found = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in lines}
    expected = {"cnn28": 121_930, "rnn28": 2_282, "resnet18": 11_689_512, "resnet50": 25_557_032}
    assert {name: found[name] for name in expected} == expected


def test_models_search_prints_a_table_of_public_weights(said):
    code, lines, _ = said(
        *("models", "search", "resnet", "--max-params", "12M", "--max-gflops", "4", "--min-top1", "70"),
        *("--license", "apache", "--task", "classification", "--sort", "top1"),
    )
    assert code == 0
    assert lines[0].split() == ["name", "parameters", "GFLOPs", "activations", "top-1", "%", "size", "licence"]
    assert lines[1].split()[0] == "resnet18.gluon_in1k"
    for line in lines[1:]:
        _, parameters, _, gflops, *_, top1, size, licence = line.split()
        assert float(parameters) <= 12
        assert float(gflops) <= 4
        assert float(top1) >= 70
        assert (size, licence) == ("224", "apache-2.0")


def test_models_search_prints_a_json_list_for_scripts(said):
    _, lines, _ = said("models", "search", "resnet50.a1_in1k", "--json")
    (found,) = json.loads(lines[0])
    assert (found["name"], found["top1"], found["preprocessing"]["train"]["height"]) == ("resnet50.a1_in1k", 81.24, 224)
    assert json.loads(said("models", "search", "no such", "--json")[1][0]) == []


def test_models_info_of_a_public_weight_says_what_it_expects_and_where_its_accuracy_is_from(said):
    code, lines, _ = said("models", "info", "resnet50.a1_in1k")
    assert code == 0
    for line in (
        "parameters      25,557,032",
        "test size       288 x 288 x 3, crop 1 (center)",
        "training size   224 x 224 x 3, crop 0.95 (center)",
        "interpolation   bicubic",
        "ImageNet-1k     top-1 81.24 %, top-5 95.11 %, at 288 x 288, crop 1.0 (timm's results-imagenet.csv)",
        "licence         apache-2.0",
        "hub             https://huggingface.co/timm/resnet50.a1_in1k",
    ):
        assert line in lines
    assert "licence         not stated" in said("models", "info", "resnet50.bamboo")[1]
    assert json.loads(said("models", "info", "resnet50.a1_in1k", "--json")[1][0])["licence"] == "apache-2.0"


def test_models_info_of_a_model_counts_its_public_weights(said):
    weights = json.loads(said("models", "info", "resnet18", "--json")[1][0])["weights"]
    assert "resnet18.a1_in1k" in weights
    expected = f"public weights  {len(weights)}; pcls models search resnet18. lists them"
    assert expected in said("models", "info", "resnet18")[1]


def test_data_info_counts_every_class_and_split(said):
    code, lines, _ = said("data", "info", "digits")
    assert code == 0
    assert lines[0] == "images      1,438 to train on, 359 held out"
    counts = [[int(word) for word in re.findall(r"\d+", line)] for line in lines if "to train on  " in line]
    assert [row[0] for row in counts] == list(range(10))
    assert (sum(row[1] for row in counts), sum(row[2] for row in counts)) == (1438, 359)


@pytest.fixture
def sequences(tmp_path):
    lengths = np.array([2, 4, 4, 9, 3, 4, 4, 8])
    values = np.arange(2 * lengths.sum()).reshape(-1, 2) / 10
    np.savez(tmp_path / "some.npz", values=values, lengths=lengths, labels=np.arange(8) % 2)
    return tmp_path / "some.npz"


def test_data_info_tells_of_sequences_and_their_padding(said, sequences):
    code, lines, _ = said("data", "info", sequences, "data.buckets=2", "data.validation=0.25")
    assert code == 0
    assert lines[0] == "sequences   6 to train on, 2 held out"
    assert re.fullmatch(r"steps       \d to \d, median \d(\.5)?", lines[1])
    assert lines[2] == "features    2"
    assert re.fullmatch(r"padded to   \d, 9: \d+\.\d% of all steps are padding", lines[3])
    assert re.fullmatch(r"mean        \d\.\d{4}, \d\.\d{4}  \(measured\)", lines[4])


def test_statistics_of_many_features_are_told_by_their_range():
    assert statistics_text((0.25, 0.5, 0.125)) == "0.2500, 0.5000, 0.1250"
    assert statistics_text([3, -1.5, *range(38)]) == "-1.5000 to 37.0000, of 40 features"


@pytest.mark.parametrize("verb", ["show", "doctor", "bench", "convert"])
def test_what_looks_at_pictures_says_so_of_sequences(said, sequences, verb, tmp_path):
    code, _, errors = said("data", verb, sequences, *([tmp_path / "out"] if verb == "convert" else []))
    expected = f"pcls: pcls data {verb} is for pictures, and data.source=sequences holds sequences; pcls data info"
    assert (code, errors) == (2, [f"{expected} tells of them"])


def test_config_show_prints_a_recipe_that_can_be_trained(said, tmp_path):
    code, lines, _ = said("config", "show", "digits_cnn", "train.batch_size=64", "run.dir=somewhere")
    assert code == 0
    (tmp_path / "mine.yaml").write_text("\n".join(lines))
    assert said("config", "diff", tmp_path / "mine.yaml", "digits_cnn")[1] == [
        "run.dir: somewhere -> runs/digits_cnn",
        "train.batch_size: 64 -> 32",
    ]


def test_report_prints_the_path_of_the_page(finished_run, tmp_path, said):
    path = shutil.copytree(finished_run, tmp_path / "run")
    code, lines, _ = said("report", path)
    assert (code, lines) == (0, [str(path / "report.html")])
    assert "<html" in (path / "report.html").read_text(encoding="utf-8")


def arguments(settings):
    return [f"{key}={value}" for key, value in settings.items()]


def test_a_stopped_run_ends_with_42_and_resume_with_0(tiny, tmp_path, said, stop_after):
    path = tmp_path / "run"
    stop_after(5)
    code, _, errors = said("train", "digits_cnn", *arguments(tiny | {"run.dir": path}))
    assert code == 42
    assert errors[-1] == f"pcls: stopped and saved at step 5; go on with: pcls resume {path}"
    stop_after(0)
    code, _, errors = said("resume", path)
    assert (code, errors[-1]) == (0, f"finished: {path}; next: pcls report {path}")


def test_a_run_that_diverges_ends_with_43_and_says_what_to_change(tmp_path, said):
    settings = {
        "run.dir": tmp_path / "run",
        "data.image_size": 10,
        "train.batch_size": 32,
        "train.duration": "60 steps",
        "optimizer.name": "sgd",
        # Close to the largest float32.
        "optimizer.lr": 3e38,
        "optimizer.schedule": "constant",
    }
    code, _, errors = said("train", "digits_rnn", *arguments(settings))
    assert code == 43
    assert errors[-1].startswith("pcls: the loss or its gradient was not finite for 20 steps in a row, from step ")
    assert "; lower optimizer.lr, lengthen optimizer.warmup" in errors[-1]
    assert not (tmp_path / "run" / "lock").exists()


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(*arguments, **options):
        raise ZeroDivisionError

    monkeypatch.setattr(pcls, "report", broken)
    with pytest.raises(ZeroDivisionError):
        main(["report", "anywhere"])


def test_debug_shows_the_traceback_of_a_users_mistake(said):
    code, _, errors = said("--debug", "train", "digits_cn")
    assert code == 2
    assert errors[0].startswith("Traceback")
    assert errors[-1].startswith("pcls: recipe 'digits_cn' is neither a file nor a known name")
    code, _, errors = said("train", "digits_cn")
    assert (code, len(errors)) == (2, 1)


@pytest.mark.parametrize("argv", [["trian"], ["train"], ["train", "--no-such-option"], ["predict", "run"]])
def test_a_usage_error_ends_with_2(argv, said):
    code, _, errors = said(*argv)
    assert code == 2
    assert errors


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    import subprocess
    import sys

    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, "-m", "pcls", "config", "show", "digits_cnn"],
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(theirs)
    assert "Traceback" not in done.stderr
