"""What a user gets wrong is told in one line, ends with 2, and leaves nothing behind."""

import errno
import gzip
import importlib.util
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
RESNET_ON_DIGITS = ["train", "folder_resnet18", "data.source=digits", "data.image_size=32", "data.channels=3"]

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
    "model axis that does not divide": (
        nothing,
        ["train", "digits_cnn", "mesh.model=3"],
        ["mesh.model=3", "8 devices"],
    ),
    "sharding rule that matches nothing": (
        nothing,
        ["train", "digits_cnn", "mesh.rules=[{{match: conv9, over: [fsdp]}}]"],
        ["mesh.rules", "'conv9' matches no parameter", "conv1/kernel"],
    ),
    "parameter that no sharding rule matches": (
        nothing,
        ["train", "digits_cnn", "mesh.rules=[{{match: kernel, over: [fsdp]}}]"],
        ["mesh.rules", "no rule matches conv1/bias"],
    ),
    "accumulation that does not divide": (
        nothing,
        ["train", "digits_cnn", "train.accumulate=5"],
        ["train.accumulate is 5", "train.batch_size=32"],
    ),
    "accumulation that does not divide the images of a device": (
        nothing,
        ["train", "digits_cnn", "train.accumulate=8"],
        ["train.accumulate is 8", "the 4 records of each of 8 devices"],
    ),
    "groups that do not divide the images of a device": (
        nothing,
        [*RESNET_ON_DIGITS, "train.batch_size=32", "batch_norm.over=groups", "batch_norm.group_size=3"],
        ["batch_norm.group_size is 3", "the 4 records", "choose a divisor of 4"],
    ),
    "groups without BatchNorm": (
        nothing,
        ["train", "digits_cnn", "batch_norm.over=groups", "batch_norm.group_size=2"],
        ["batch_norm.over", "cnn28 has no BatchNorm"],
    ),
    "option that the model lacks": (
        nothing,
        ["train", "digits_cnn", "model.drop_path=0.1"],
        ["model.drop_path has no effect with cnn28", "resnet50"],
    ),
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
        ["finetune", "digits", "--model", "{0}/nowhere"],
        ["neither a run", "nor a bundle"],
    ),
    "a format that is not written": (
        nothing,
        ["export", "{0}/nowhere", "--to", "tflite"],
        ["--to: 'tflite' is not one of 'stablehlo', 'onnx', 'litert', 'safetensors'"],
    ),
    "a recipe of fine-tuning that is none": (
        nothing,
        ["finetune", "digits", "--model", "{0}/nowhere", "--recipe", "linear"],
        ["--recipe: 'linear' is not one of 'auto', 'probe'"],
    ),
    "words for a number": (nothing, ["predict", "{0}/nowhere", "a.png", "--top", "all"], ["--top: ", "integer"]),
    "a sweep of nothing": (nothing, ["sweep", "digits_cnn", "--folder", "{0}/sweep"], ["no key has a range"]),
    "resume of nothing": (nothing, ["resume", "{0}/nowhere"], ["there is no run in this folder", "pcls train"]),
    "evaluation of nothing": (nothing, ["eval", "{0}/nowhere"], ["there is no run in this folder"]),
    "report of nothing": (nothing, ["report", "{0}/nowhere"], ["there is no run in this folder"]),
    "prediction from nothing": (nothing, ["predict", "{0}/nowhere", "a.png"], ["neither a run", "nor a bundle"]),
    "facts of an unknown model": (nothing, ["models", "info", "resnet51"], ["'resnet51'", "nearest is 'resnet50'"]),
    "facts of an unknown weight": (
        nothing,
        ["models", "info", "resnet50.a1_in1"],
        ["'resnet50.a1_in1'", "nearest are resnet50.a1_in1k"],
    ),
    "weights that nobody has": (
        nothing,
        ["models", "search", "resnet", "--min-top1", "99"],
        ["no public weight fits", "pcls models search"],
    ),
    "number of parameters that is none": (
        nothing,
        ["models", "search", "--max-params", "10X"],
        ["--max-params is '10X'", "such as 10M"],
    ),
    "import of nothing": (
        nothing,
        ["models", "import", "{0}/nowhere.safetensors", "--out", "{0}/out"],
        ["nowhere.safetensors: there is no such file or folder"],
    ),
    "import of a pickle": (
        a_file,
        ["models", "import", "{0}/data.pth", "--out", "{0}/out"],
        ["can run code when it is read", "weights_only=True"],
    ),
    "import of an unknown weight": (
        nothing,
        ["models", "import", "resnet50.a1_in1", "--out", "{0}/out"],
        ["'resnet50.a1_in1'", "nearest are resnet50.a1_in1k"],
    ),
    "import for pictures of no channels": (
        nothing,
        ["models", "import", "resnet50.a1_in1k", "--channels", "0", "--out", "{0}/out"],
        ["channels is 0", "1 (grey), 3 (RGB) or another number"],
    ),
    "export of nothing": (nothing, ["models", "export", "{0}/nowhere"], ["neither a run", "nor a bundle"]),
    "facts of missing data": (nothing, ["data", "info", "{0}/nowhere"], ["there is no such file or folder"]),
    "plan of an unknown recipe": (nothing, ["plan", "digits_cn"], ["'digits_cn'", "nearest is 'digits_cnn'"]),
    "plan for unknown devices": (
        nothing,
        ["plan", "digits_rnn", "--topology", "v6:2x2"],
        ["'v6:2x2' is not known", "nearest is 'v6e'", "v4:2x2x1, v5e:2x2", "cpu-8"],
    ),
    "plan for a slice that there is not": (
        nothing,
        ["plan", "digits_rnn", "--topology", "v5e:3x3"],
        ["v5e has no slice of 3x3", "2x2, 2x4, 4x4"],
    ),
    "plan for too many devices": (nothing, ["plan", "digits_rnn", "--topology", "cpu-5000"], ["N from 1 to 1024"]),
    "plan for slices of CPUs": (
        nothing,
        ["plan", "digits_rnn", "--topology", "cpu-8", "--slices", "2"],
        ["simulated CPU devices have no slices", "leave slices at 1"],
    ),
    "plan for no slices": (nothing, ["plan", "digits_rnn", "--slices", "0"], ["slices is 0: 1 or more are needed"]),
    "plan of a batch that devices do not divide": (
        nothing,
        ["plan", "digits_rnn", "train.batch_size=30", "--topology", "cpu-8"],
        ["train.batch_size is 30", "8 devices"],
    ),
    "plan without the data that the recipe does not describe": (
        nothing,
        ["plan", "folder_resnet18", "--topology", "cpu-8"],
        ["data.path is empty"],
    ),
    "bench of an unknown model": (nothing, ["bench", "resnet51"], ["'resnet51'", "nearest is 'resnet50'"]),
    "bench on unknown devices": (nothing, ["bench", "--device", "npu"], ["--device 'npu'", "cpu, cuda, rocm, tpu"]),
    "bench in an unknown precision": (
        nothing,
        ["bench", "--precision", "float16"],
        ["--precision 'float16'", "bfloat16 or float32 is needed"],
    ),
    "bench of a batch that devices do not divide": (
        nothing,
        ["bench", "rnn28", "--batch-size", "20"],
        ["--batch-size is 20", "8 devices", "16 or 24"],
    ),
    "profile of one step": (nothing, ["train", "digits_rnn", "--profile", "10"], ["--profile '10'", "as in 10:15"]),
    "profile that ends before it starts": (
        nothing,
        ["train", "digits_rnn", "--profile", "15:10"],
        ["--profile '15:10'", "FIRST:LAST"],
    ),
    "profile from step 0": (nothing, ["resume", "{0}", "--profile", "0:10"], ["--profile '0:10'", "counted from 1"]),
    "profile beyond the run": (
        nothing,
        ["train", "digits_rnn", "data.image_size=10", "train.duration=8 steps", "--profile", "9:12"],
        ["profile: steps 9 to 12", "of this run, 1 to 8", "--profile 3:5"],
    ),
    "other classes than expected": (
        nothing,
        ["train", "digits_rnn", "data.expect_classes=12"],
        ["data.expect_classes is 12", "there are 10 classes"],
    ),
    "other records than expected": (
        nothing,
        ["train", "digits_rnn", "data.expect_records=1797"],
        ["data.expect_records is 1,797", "there are 1,438 training records"],
    ),
    "crop of what is kept whole": (
        nothing,
        ["train", "digits_rnn", "data.crop_pct=0.9"],
        ["data.crop_pct has no effect with digits", "leave it out"],
    ),
    "sizes of pixels that have one": (
        nothing,
        ["train", "digits_cnn", "model.name=resnet18_cifar", "data.progressive=[{{until: 1 epochs, image_size: 9}}]"],
        ["data.progressive needs image files"],
    ),
    "sizes without an end": (
        nothing,
        ["train", "digits_cnn", "data.progressive=[{{image_size: 9}}]"],
        ["data.progressive", "until"],
    ),
    "sizes of images that lie on the devices": (
        nothing,
        ["train", "digits_cnn", "data.on_device=true", "data.progressive=[{{until: 1 epochs, image_size: 9}}]"],
        ["data.on_device", "needs batches of one size"],
    ),
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


def test_a_device_that_is_not_here_is_one_line():
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run(
        [sys.executable, "-m", "pcls", "bench", "rnn28", "--device", "rocm"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("pcls: --device rocm: jax has no such device here (")


def test_a_plan_for_tpus_without_libtpu_names_the_extra():
    if importlib.util.find_spec("libtpu"):
        pytest.skip("libtpu is installed")
    # In a process of its own: the environment is made ready for libtpu before it is looked for.
    done = subprocess.run(
        [sys.executable, "-m", "pcls", "plan", "digits_rnn", "--topology", "v5e:2x2"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("pcls: topology v5e:2x2 needs libtpu, which is not installed; pip install 'pcls[tpu]'\n")


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
