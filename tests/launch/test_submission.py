"""What is handed over, and what is refused before anything is."""

import subprocess

import pytest

from pcls.cli import main
from pcls.errors import UserError
from pcls.launch.job import default_name
from pcls.launch.submission import Submission, as_script, submit

TPU = ["--zone", "us-east5-b", "--project", "my-project", "--image", "my/pcls:1", "--topology", "v6e:4x4"]
OPTIONS = {
    "ssh": ["--hosts", "node1"],
    "slurm": [],
    "tpu-vm": TPU,
    "queued": TPU,
    "jobset-tpu": ["--image", "my/pcls:1", "--topology", "v6e:4x4"],
    "jobset-gpu": ["--image", "my/pcls:1", "--gpu", "nvidia-l4"],
    "xpk": [
        "--zone",
        "us-east5-b",
        "--project",
        "my-project",
        "--image",
        "my/pcls:1",
        "--topology",
        "v6e:4x4",
        "--cluster",
        "c1",
    ],
    "sky": ["--image", "my/pcls:1", "--accelerators", "H100:8"],
}
TOOLS = {"ssh": "ssh", "slurm": "sbatch", "tpu-vm": "gcloud", "queued": "gcloud", "xpk": "xpk", "sky": "sky"}


@pytest.mark.parametrize("target", OPTIONS)
def test_a_missing_tool_is_named_and_nothing_is_written(target, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["launch", target, "digits_cnn", *OPTIONS[target], "--submit"]) == 2
    tool = TOOLS.get(target, "kubectl")
    told = capsys.readouterr().err
    assert told == f"pcls: {tool}: not installed here, or not on PATH; --dry-run shows what would run\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", OPTIONS)
@pytest.mark.parametrize("flags", [[], ["--dry-run", "--submit"]], ids=["neither", "both"])
def test_it_must_be_said_whether_to_show_or_to_run(target, flags, capsys):
    assert main(["launch", target, "digits_cnn", *OPTIONS[target], *flags]) == 2
    captured = capsys.readouterr()
    assert captured.err == "pcls: write --dry-run to see what would run, or --submit to run it\n"
    assert captured.out == ""


@pytest.mark.parametrize("target", OPTIONS)
def test_a_wrong_recipe_is_found_before_anything_is_rendered(target, capsys):
    assert main(["launch", target, "digits_cnn", "optimizer.lr=fast", *OPTIONS[target], "--dry-run"]) == 2
    captured = capsys.readouterr()
    assert "optimizer.lr" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("target", sorted(set(OPTIONS) - {"ssh"}))
def test_submitting_runs_what_the_dry_run_shows(target, tools, tmp_path, monkeypatch, capsys):
    note = tmp_path / "noted"
    for name in {*TOOLS.values(), "kubectl"}:
        tools(name, f'printf "%s\\x1f" "${{0##*/}}" "$@" >> {note}; printf "\\x1e" >> {note}\n')
    results = []
    for way in ("shown", "submitted"):
        folder = tmp_path / way
        folder.mkdir()
        monkeypatch.chdir(folder)
        arguments = ["launch", target, "digits_cnn", "run.dir=/runs/it's", *OPTIONS[target]]
        if way == "shown":
            assert main([*arguments, "--dry-run"]) == 0
            subprocess.run(["bash", "-s"], input=capsys.readouterr().out, text=True, check=True)
        else:
            assert main([*arguments, "--submit"]) == 0
        results.append((note.read_text(), {file.name: file.read_text() for file in folder.iterdir()}))
        note.unlink()
    assert results[0] == results[1]
    assert results[0][0].count("\x1e") == 1


def test_a_tool_that_fails_is_told_with_its_code(tools, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tools("kubectl", "echo no such cluster >&2; exit 7\n")
    assert main(["launch", "jobset-gpu", "digits_cnn", *OPTIONS["jobset-gpu"], "--submit"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == "pcls: kubectl create ended with exit code 7; what it said stands above"


def test_commands_after_one_that_failed_do_not_run(tools, tmp_path):
    tools("first", "exit 1\n")
    tools("second", f"touch {tmp_path / 'ran'}\n")
    with pytest.raises(UserError, match="first ended with exit code 1"):
        submit(Submission((("first",), ("second",))))
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_there_and_says_something_else_is_kept(tools, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tools("true", "exit 0\n")
    submission = Submission((("true",),), {"job.yaml": "new\n"})
    (tmp_path / "job.yaml").write_text("mine\n")
    with pytest.raises(UserError, match=r"job\.yaml: is here already and says something else; remove it, or choose"):
        submit(submission)
    assert (tmp_path / "job.yaml").read_text() == "mine\n"
    (tmp_path / "job.yaml").write_text("new\n")
    submit(submission)


def test_files_come_before_the_commands_that_read_them():
    text = as_script(Submission((("tool", "a b"),), {"f": "x\n"}))
    assert text == "cat > f <<'PCLS_END'\nx\nPCLS_END\ntool 'a b'\n"


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("imagenet_resnet50", "imagenet-resnet50"),
        ("a/b/My Recipe.yaml", "my-recipe"),
        ("28x28.yaml", "x28"),
        ("日本.yaml", "pcls"),
        ("a" * 39 + "_b.yaml", "a" * 39),
    ],
)
def test_the_default_name_is_the_recipes_as_all_targets_allow_it(recipe, name):
    assert default_name(recipe) == name


def test_options_without_effect_are_refused(capsys):
    slurm = ["launch", "slurm", "digits_cnn", "--dry-run"]
    for words, message in (
        ([*slurm, "--volume", "/a:/a"], "--volume: mounts storage into a container, and there is none"),
        ([*slurm, "--gpus-per-node", "8"], "one task a GPU is needed, so the two must be equal"),
        (["launch", "tpu-vm", "digits_cnn", *OPTIONS["tpu-vm"], "--spot", "--dry-run"], "they need --create"),
        (["launch", "slurm", "digits_cnn", "--env", "A=1", "--env", "A=2", "--dry-run"], "A is set twice"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err
