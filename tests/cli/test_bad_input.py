"""What a user gets wrong is told in one line, ends with 2, and leaves nothing behind."""

import errno
import gzip
import json
import os
import shutil
import socket
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pcls.cli import main

FOLDER = ["train", "digits_rnn", "data.source=folder", "data.channels=1", "data.path={0}/data"]
IDX = ["train", "digits_rnn", "data.source=idx", "data.path={0}/data"]


def nothing(folder):
    pass


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 12), 99, np.uint8)).save(path)


def no_images(folder):
    (folder / "data" / "cat").mkdir(parents=True)
    (folder / "data" / "cat" / "notes.txt").write_text("none")


def one_class(folder):
    for number in range(4):
        picture(folder / "data" / "cat" / f"{number}.png")


def an_empty_class(folder):
    one_class(folder)
    picture(folder / "data" / "dog" / "1.png")
    (folder / "data" / "emu").mkdir()


def idx(path, array):
    path.parent.mkdir(exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as file:
        file.write(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


def mnist_like(folder, *, labels=(0, 1, 2), test_labels=(0, 1, 2)):
    for split, values in (("train", labels), ("t10k", test_labels)):
        values = np.tile(np.asarray(values, np.uint8), 8)
        idx(folder / "data" / f"{split}-images-idx3-ubyte", np.full((len(values), 10, 10), 7, np.uint8))
        idx(folder / "data" / f"{split}-labels-idx1-ubyte.gz", values)


def change(name, edit):
    def damage(folder):
        mnist_like(folder)
        path = folder / "data" / name
        path.write_bytes(edit(path.read_bytes()))

    return damage


def fewer_labels(folder):
    mnist_like(folder)
    idx(folder / "data" / "train-labels-idx1-ubyte.gz", np.zeros(5, np.uint8))


def a_file(folder):
    (folder / "data").write_text("no folder")


def recipe_of(text):
    return lambda folder: (folder / "mine.yaml").write_text(text)


# What is prepared, the command line, and words that the line must hold. {0} is the folder.
BAD_INPUTS = {
    "unknown recipe": (nothing, ["train", "digits_cn"], ["'digits_cn'", "nearest is 'digits_cnn'"]),
    "unknown key": (
        nothing,
        ["train", "digits_cnn", "optimizer.lrr=1"],
        ["'optimizer.lrr'", "nearest", "optimizer.lr"],
    ),
    "unknown key in a file": (
        recipe_of("train:\n  batchsize: 3\n"),
        ["train", "{0}/mine.yaml"],
        ["mine.yaml:2", "batchsize", "nearest", "train.batch_size"],
    ),
    "override without a value": (nothing, ["train", "digits_cnn", "train.batch_size"], ["has no '='", "key=value"]),
    "text for a number": (
        nothing,
        ["train", "digits_cnn", "train.batch_size=many"],
        ["train.batch_size", '"many" (text)'],
    ),
    "text for a rate in a file": (
        recipe_of("optimizer:\n  lr: 1e-3\n"),
        ["train", "{0}/mine.yaml"],
        ["mine.yaml:2", "optimizer.lr", '"1e-3" (text)', "write 1.0e-3"],
    ),
    "rate that is not a number": (
        nothing,
        ["train", "digits_cnn", "optimizer.lr=nan"],
        ["optimizer.lr", "nan", "finite number"],
    ),
    "negative rate": (nothing, ["train", "digits_cnn", "optimizer.lr=-1e-3"], ["optimizer.lr", "-0.001", "> 0"]),
    "negative size": (nothing, ["train", "digits_cnn", "train.batch_size=-8"], ["train.batch_size", "-8", ">= 1"]),
    "duration without a unit": (
        nothing,
        ["train", "digits_cnn", "train.duration=10"],
        ["train.duration", "10", "600 steps"],
    ),
    "broken YAML": (recipe_of("train: {\n"), ["train", "{0}/mine.yaml"], ["mine.yaml", "not valid YAML"]),
    "batch that devices do not divide": (
        nothing,
        ["train", "digits_cnn", "train.batch_size=30"],
        ["train.batch_size is 30", "8 devices", "24 or 32"],
    ),
    "evaluation batch that devices do not divide": (
        nothing,
        ["train", "digits_cnn", "evaluate.batch_size=4"],
        ["evaluate.batch_size is 4", "write 8"],
    ),
    "mesh of other devices": (nothing, ["train", "digits_cnn", "mesh.data=3"], ["mesh.data=3", "8 devices"]),
    "fsdp that does not divide": (nothing, ["train", "digits_cnn", "mesh.fsdp=3"], ["mesh.fsdp=3", "8 devices"]),
    "unknown model": (nothing, ["train", "digits_cnn", "model.name=cnn29"], ["'cnn29'", "nearest is 'cnn28'"]),
    "images too small": (
        nothing,
        ["train", "digits_cnn", "data.image_size=8"],
        ["cnn28 needs images of 10 x 10", "8 x 8"],
    ),
    "rule that matches nothing": (
        nothing,
        ["train", "digits_rnn", "optimizer.lr_scale=[{{match: ^haed/, scale: 1.0}}]"],
        ["optimizer.lr_scale", "'^haed/' matches no parameter"],
    ),
    "unknown source": (
        nothing,
        ["train", "digits_rnn", "data.source=digit"],
        ["data.source", "'digit'", "digits, idx"],
    ),
    "digits with a folder": (nothing, ["train", "digits_rnn", "data.path={0}"], ["data.path", "leave it empty"]),
    "class that the data lacks": (
        nothing,
        ["train", "digits_rnn", "data.classes=[1, 12]"],
        ["data.classes", "class 12", "0 to 9"],
    ),
    "one class chosen": (nothing, ["train", "digits_rnn", "data.classes=[1]"], ["only one class"]),
    "no data folder named": (nothing, ["train", "digits_rnn", "data.source=folder"], ["data.path is empty"]),
    "missing data folder": (nothing, FOLDER, ["data.path", "there is no such folder"]),
    "file for a data folder": (a_file, FOLDER, ["data.path", "there is no such folder"]),
    "folder without images": (no_images, FOLDER, ["no .jpg", "one folder a class"]),
    "one class only": (one_class, FOLDER, ["only one class, 'cat'"]),
    "empty class": (an_empty_class, FOLDER, ["no images in the class folder 'emu'"]),
    "folder without idx files": (no_images, IDX, ["no file train-images-idx3-ubyte"]),
    "idx file cut short": (
        change("train-images-idx3-ubyte", lambda data: data[:-5]),
        IDX,
        ["train-images-idx3-ubyte", "only 2,395 of 2,400 bytes", "copy it again"],
    ),
    "idx file too long": (
        change("train-images-idx3-ubyte", lambda data: data + b"more"),
        IDX,
        ["train-images-idx3-ubyte", "more than 2,400"],
    ),
    "idx file of nothing": (
        change("train-images-idx3-ubyte", lambda data: b""),
        IDX,
        ["train-images-idx3-ubyte", "magic"],
    ),
    "gzip stream cut short": (
        change("t10k-labels-idx1-ubyte.gz", lambda data: data[:-12]),
        IDX,
        ["t10k-labels-idx1-ubyte.gz", "cut short"],
    ),
    "wrong magic number": (
        change("t10k-images-idx3-ubyte", lambda data: b"\x89PNG" + data[4:]),
        IDX,
        ["t10k-images-idx3-ubyte", "magic number 89504e47 instead of 00000803"],
    ),
    "fewer labels than images": (fewer_labels, IDX, ["train-labels-idx1-ubyte.gz", "5 labels for 24 images"]),
    "labels outside the classes": (
        lambda folder: mnist_like(folder, test_labels=(0, 1, 7)),
        IDX,
        ["labels run to class '7'", "no training record carries"],
    ),
    "label that no record carries": (
        lambda folder: mnist_like(folder, labels=(0, 2)),
        IDX,
        ["class '1' has no training records"],
    ),
    "weights that are nowhere": (
        nothing,
        ["train", "digits_cnn", "model.init={0}/weights"],
        ["neither a run", "nor a bundle"],
    ),
    "fine-tuning from nothing": (
        nothing,
        ["finetune", "{0}/nowhere", "--data", "digits"],
        ["neither a run", "nor a bundle"],
    ),
    "resume of nothing": (nothing, ["resume", "{0}/nowhere"], ["there is no run in this folder", "pcls train"]),
    "evaluation of nothing": (nothing, ["eval", "{0}/nowhere"], ["there is no run in this folder"]),
    "report of nothing": (nothing, ["report", "{0}/nowhere"], ["there is no run in this folder"]),
    "prediction from nothing": (nothing, ["predict", "{0}/nowhere", "a.png"], ["neither a run", "nor a bundle"]),
    "facts of an unknown model": (nothing, ["models", "info", "resnet51"], ["'resnet51'", "nearest is 'resnet50'"]),
    "facts of missing data": (nothing, ["data", "info", "{0}/nowhere"], ["there is no such folder"]),
    "run folder inside a file": (
        a_file,
        ["train", "digits_rnn", "data.image_size=10", "run.dir={0}/data/run"],
        ["data/run", "cannot be written"],
    ),
}


def one_line(argv, capsys):
    code = main(argv)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert code == 2, captured.err
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("pcls: ")
    assert captured.out == ""
    return lines[0]


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_one_line_and_leaves_nothing(name, tmp_path, capsys):
    prepare, argv, words = BAD_INPUTS[name]
    prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    argv = [argument.format(tmp_path) for argument in argv]
    if argv[0] == "train" and not any(argument.startswith("run.dir=") for argument in argv):
        argv.append(f"run.dir={tmp_path}/runs/mine")
    line = one_line(argv, capsys)
    for word in words:
        assert word in line
    assert sorted(tmp_path.rglob("*")) == before


def test_weights_of_another_model_are_refused(finished_run, tmp_path, capsys):
    line = one_line(
        ["train", "digits_rnn", "data.image_size=10", f"model.init={finished_run}", f"run.dir={tmp_path}/run"], capsys
    )
    assert "model.name is 'rnn28'" in line
    assert "are of cnn28" in line
    assert list(tmp_path.iterdir()) == []


def test_the_checkpoint_of_another_model_is_refused_and_the_run_stays_as_it_was(finished_run, tmp_path, capsys):
    path = shutil.copytree(finished_run, tmp_path / "run")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    line = one_line(["resume", str(path), "model.name=rnn28", "train.duration=20 steps"], capsys)
    assert "checkpoints/12: is a checkpoint of another model: params/" in line
    assert "params/head/kernel is float32[64, 10] there and float32[32, 10] here" in line
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_a_used_run_folder_is_refused_and_names_resume(finished_run, tiny, capsys):
    settings = [f"{key}={value}" for key, value in tiny.items()]
    line = one_line(["train", "digits_cnn", *settings, f"run.dir={finished_run}"], capsys)
    assert f"holds a finished run; go on with it by: pcls resume {finished_run}" in line


def test_a_run_that_another_process_writes_is_refused_with_host_and_pid(finished_run, tmp_path, capsys):
    path = shutil.copytree(finished_run, tmp_path / "run")
    hold = "import sys; from pcls.run.folder import RunFolder\n"
    hold += "with RunFolder(sys.argv[1]).locked(): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        line = one_line(["resume", str(path), "train.duration=20 steps"], capsys)
        assert f"process {holder.pid} on {socket.gethostname()} is writing this run" in line
        holder.communicate("")


@pytest.mark.faults
def test_a_full_disk_ends_with_one_line_and_the_last_checkpoint_stays(small_disk, tiny, capsys):
    settings = [f"{key}={value}" for key, value in tiny.items()]
    code = main(["train", "digits_cnn", *settings, f"run.dir={small_disk}/run"])
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pcls: ")]
    assert code == 2
    assert len(told) == 1
    assert "no space left on the disk" in told[0] or os.strerror(errno.ENOSPC) in told[0]
    assert not (small_disk / "run" / "lock").exists()
    assert [step.name for step in (small_disk / "run" / "checkpoints").iterdir()] == ["4"]
    manifest = json.loads((small_disk / "run" / "checkpoints" / "4" / "pcls_manifest.json").read_text())
    assert manifest["step"] == 4
