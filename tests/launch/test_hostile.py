"""Hostile words: what bash, the tools and Kubernetes get is the word itself, or nothing is rendered at all."""

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from pcls.cli import main
from pcls.launch.submission import Submission, as_script

HOSTILE = {
    "single quote": "run.dir=/runs/it's",
    "double quote": 'run.dir=/runs/"x"',
    "semicolon": "run.dir=/runs/x; touch hacked",
    "substitution": "run.dir=/runs/$(touch hacked)`touch hacked`",
    "variable": "run.dir=/runs/$HOME/$$/${HOME}",
    "redirection": "run.dir=/runs/x > hacked & touch hacked | touch hacked",
    "backslash": "run.dir=/runs/\\' touch hacked",
    "yaml": "run.dir=/runs/x: {a: &b [*b]} # no comment",
    "heredoc": "run.dir=PCLS_END",
    "braces": "run.dir=/runs/{args.project}%s",
    "letters": "run.dir=/runs/Übung-日本",
}
hostile = pytest.mark.parametrize("word", HOSTILE.values(), ids=HOSTILE)
GOOGLE = ["--zone", "us-east5-b", "--project", "my-project", "--image", "my/pcls:1", "--topology", "v6e:4x4"]
TARGETS = {
    "ssh": ["--hosts", "node1,node2"],
    "slurm": ["--nodes", "2"],
    "tpu-vm": GOOGLE,
    "queued": GOOGLE,
    "jobset-tpu": ["--image", "my/pcls:1", "--topology", "v6e:4x4"],
    "jobset-gpu": ["--image", "my/pcls:1", "--gpu", "nvidia-l4", "--nodes", "2"],
    "xpk": [*GOOGLE, "--cluster", "c1"],
    "sky": ["--image", "my/pcls:1", "--accelerators", "H100:8", "--nodes", "2"],
}
# Writes down its name and its arguments, and ends. No argument has that character in it. Each process has a file of its
# own, because the commands of several hosts run at the same time; the names are in the order of the calls.
NOTE = 'printf "%s\\x1f" "${0##*/}" "$@" > "$NOTED/$EPOCHREALTIME-$$"\n'


@pytest.fixture
def pasted(tools, tmp_path, monkeypatch):
    """A function that has bash run a text, with tools that only note what they got, and returns that."""
    for name in ("pcls", "docker", "gcloud", "kubectl", "xpk", "sky", "scontrol"):
        tools(name, NOTE)
    tools("sudo", 'while [[ $1 == -* ]]; do shift; done\nexec "$@"\n')
    tools("sleep", "exit 0\n")
    # What runs elsewhere: the last argument of ssh, or after --command=, by a shell; a batch script, by bash.
    tools("ssh", 'exec bash -c "${@: -1}" < <(exec /bin/sleep 3)\n')
    tools("sbatch", 'SLURM_JOB_ID=7 exec bash "$1"\n')
    tools("srun", 'while [[ $1 == -* ]]; do shift; done\nexec "$@"\n')
    folder, noted = tmp_path / "here", tmp_path / "noted"
    folder.mkdir()
    noted.mkdir()
    monkeypatch.setenv("NOTED", str(noted))

    def run(text: str) -> list[list[str]]:
        subprocess.run(["bash", "-s"], input=text, text=True, cwd=folder, check=True, timeout=60)
        assert not list(tmp_path.rglob("hacked"))
        return [call.read_text().split("\x1f")[:-1] for call in sorted(noted.iterdir())]

    run.folder = folder
    return run


def rendered(capsys, target, *words):
    code = main(["launch", target, "digits_cnn", *words, *TARGETS[target], "--dry-run"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


@hostile
@pytest.mark.parametrize("target", ["ssh", "slurm"])
def test_pcls_on_hosts_and_nodes_gets_the_word_itself(target, word, pasted, capsys):
    calls = pasted(rendered(capsys, target, word, "--env", "A=it's $(touch hacked)"))
    trained = [call for call in calls if call[0] == "pcls"]
    assert len(trained) == (2 if target == "ssh" else 1)
    assert all(call[-4:] == ["--resume", "--", "digits_cnn", word] for call in trained)


@hostile
@pytest.mark.parametrize("target", ["tpu-vm", "queued"])
def test_docker_on_tpu_hosts_gets_the_word_itself(target, word, pasted, capsys):
    (call,) = pasted(rendered(capsys, target, word, "--env", "A=it's $(touch hacked)"))
    assert call[:2] == ["gcloud", "compute"]
    if target == "queued":
        script = (pasted.folder / "digits-cnn.startup.sh").read_text()
        assert call[-1] == "--metadata-from-file=startup-script=digits-cnn.startup.sh"
    else:
        script = call[-1].removeprefix("--command=")
    *_, removed, started = pasted(script)
    assert removed == ["docker", "rm", "--force", "pcls-digits-cnn"]
    assert "--env=A=it's $(touch hacked)" in started
    assert started[-3:] == ["--", "digits_cnn", word]


@hostile
@pytest.mark.parametrize("target", ["jobset-tpu", "jobset-gpu"])
def test_kubernetes_gets_the_word_itself_with_dollars_doubled(target, word, pasted, capsys):
    (call,) = pasted(rendered(capsys, target, word, "--env", "A=it's $(touch hacked): #"))
    assert call == ["kubectl", "create", "--filename=digits-cnn.jobset.yaml"]
    values = yaml.safe_load((pasted.folder / "digits-cnn.jobset.yaml").read_text())
    (container,) = values["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][-2:] == ["digits_cnn", word.replace("$", "$$")]
    assert {"name": "A", "value": "it's $$(touch hacked): #"} in container["env"]


@hostile
def test_the_bash_in_xpks_container_gets_the_word_itself(word, pasted, capsys):
    (call,) = pasted(rendered(capsys, "xpk", word, "--env", "A=it's $(touch hacked)"))
    (command,) = [argument.removeprefix("--command=") for argument in call if argument.startswith("--command=")]
    # XPK puts it into a line of YAML, and Kubernetes halves the dollars.
    template = f"command:\n- bash\n- -c\n- |\n  ({command}) & PID=$!;\n  wait $PID;\n"
    bash = yaml.safe_load(template)["command"][-1].replace("$$", "$")
    trained = pasted(bash)[-1]
    assert trained[-4:] == ["--resume", "--", "digits_cnn", word]


@hostile
def test_the_nodes_of_skypilot_get_the_word_itself(word, pasted, capsys, monkeypatch):
    (call,) = pasted(rendered(capsys, "sky", word, "--env", "A=it's $(touch hacked): #"))
    assert call == ["sky", "jobs", "launch", "--yes", "digits-cnn.sky.yaml"]
    task = yaml.safe_load((pasted.folder / "digits-cnn.sky.yaml").read_text())
    assert task["envs"] == {"A": "it's $(touch hacked): #"}
    for name, value in (("NODE_IPS", "10.0.0.1\n10.0.0.2"), ("NUM_NODES", "2"), ("NODE_RANK", "1")):
        monkeypatch.setenv(f"SKYPILOT_{name}", value)
    started = pasted(task["run"])[-1]
    assert started[:9] == [
        *("pcls", "launch", "local", "--coordinator", "10.0.0.1:8476", "--total", "2", "--first", "1")
    ]
    assert started[-3:] == ["--", "digits_cnn", word]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("word", ["run.dir=a\nrm -rf x", "run.dir=a\rb", "run.dir=a\x1b[2Jb", "run.dir=a\u2028b"])
def test_line_breaks_and_control_characters_are_refused(target, word, capsys):
    assert main(["launch", target, "digits_cnn", word, *TARGETS[target], "--dry-run"]) == 2
    assert "has a line break or another character that cannot be printed" in capsys.readouterr().err


@pytest.mark.parametrize("target", sorted(set(TARGETS) - {"ssh"}))
@pytest.mark.parametrize(
    "name", ["x; rm -rf .", "it's", "a\nb", "UPPER", "-x", "x-", "$(id)", "a" * 41, "ü", "a.b", "1a"]
)
def test_a_name_that_breaks_the_rule_is_refused_with_the_rule(target, name, capsys):
    assert main(["launch", target, "digits_cnn", *TARGETS[target], "--name", name, "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("pcls: --name ")
    assert "(RFC 1035) is needed, of at most 40 characters" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("target", "option", "value", "rule"),
    [
        ("ssh", "--hosts", "node1,-oProxyCommand=touch hacked", "a host, as in node1"),
        ("ssh", "--hosts", "node1,,node2", "a host, as in node1"),
        ("ssh", "--hosts", "a;b", "a host, as in node1"),
        ("ssh", "--folder", "relative", "an absolute path"),
        ("ssh", "--secret", "KEY=not/absolute", "an absolute path"),
        ("slurm", "--partition", "gpu\n#SBATCH --uid=0", "letters, digits and _"),
        ("slurm", "--account", "a b", "letters, digits and _"),
        ("slurm", "--time", "soon", "a time of Slurm"),
        ("slurm", "--container", "a image", "an image of pyxis"),
        ("slurm", "--qos", "--wrap=x", "letters, digits and _"),
        ("tpu-vm", "--zone", "us-east5-b --flag", "a zone, as in us-east5-b"),
        ("queued", "--project", "a;b", "the id of a Google Cloud project"),
        ("queued", "--version", "v2 x", "a TPU software version"),
        ("queued", "--volume", "/a,b:/c", "an absolute path"),
        ("queued", "--volume", "/a:relative", "an absolute path"),
        ("tpu-vm", "--secret", "KEY=a/b", "a secret of Secret Manager"),
        ("jobset-tpu", "--namespace", "Team_A", "a DNS-1123 label"),
        ("jobset-tpu", "--image", "pcls:1\nevil: true", "a container image"),
        ("jobset-gpu", "--gpu", "H100; x", "a GPU as GKE labels"),
        ("jobset-gpu", "--volume", "Claim:/runs", "a DNS-1123 subdomain"),
        ("jobset-gpu", "--secret", "KEY=nokey", "a key of a Kubernetes secret"),
        ("xpk", "--cluster", "c 1", "a DNS-1123 label"),
        ("sky", "--accelerators", "H100:8 --x", "an accelerator, as in H100:8"),
        ("sky", "--infra", "gcp;x", "where SkyPilot looks"),
        ("sky", "--volume", "/local:/runs", "a bucket, as in gs://my-bucket"),
        ("sky", "--secret", "A=B", "write --secret A=A"),
        ("slurm", "--env", "1A=x", "the name of an environment variable"),
        ("slurm", "--env", "A", "NAME=VALUE is needed"),
        ("slurm", "--env", "A=a\nb", "has a line break"),
        ("jobset-tpu", "--topology", "v6e:3x3", "v6e has no slice of 3x3"),
    ],
)
def test_every_other_word_is_checked_by_the_rule_of_its_reader(target, option, value, rule, capsys):
    words = TARGETS[target]
    kept = [word for place, word in enumerate(words) if option not in (word, words[place - 1] if place else "")]
    assert main(["launch", target, "digits_cnn", *kept, f"{option}={value}", "--dry-run"]) == 2
    captured = capsys.readouterr()
    assert rule in captured.err
    assert captured.out == ""
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("variable", ["WANDB_API_KEY", "HF_TOKEN", "my_password", "AWS_SECRET_ACCESS"])
def test_a_secret_by_value_is_refused_and_not_printed(variable, capsys):
    assert main(["launch", "slurm", "digits_cnn", "--env", f"{variable}=hunter2", "--dry-run"]) == 2
    captured = capsys.readouterr()
    assert f"--env {variable}: looks like a secret" in captured.err
    assert "hunter2" not in captured.out + captured.err


def test_a_secret_that_is_malformed_is_not_printed(capsys):
    assert main(["launch", "slurm", "digits_cnn", "--secret", "=hunter2", "--dry-run"]) == 2
    captured = capsys.readouterr()
    assert "NAME=REFERENCE is needed" in captured.err
    assert "hunter2" not in captured.out + captured.err


def test_a_secret_in_a_file_reaches_the_process_and_no_command_line(tools, tmp_path, capsys):
    secret = tmp_path / "it's a file"
    secret.write_text("hunter2\n")
    tools("pcls", f'echo "$WANDB_API_KEY" > {shlex.quote(str(tmp_path / "seen"))}; echo "$@"\n')
    tools("srun", 'while [[ $1 == -* ]]; do shift; done\nexec "$@"\n')
    tools("sbatch", 'exec bash "$1"\n')
    text = rendered(capsys, "slurm", "--secret", f"WANDB_API_KEY={secret}")
    assert "hunter2" not in text
    done = subprocess.run(["bash", "-s"], input=text, text=True, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "seen").read_text() == "hunter2\n"
    assert "hunter2" not in done.stdout
    assert "hunter2" not in (tmp_path / "digits-cnn.sbatch").read_text()
    secret.unlink()
    assert subprocess.run(["bash", "digits-cnn.sbatch"], cwd=tmp_path, capture_output=True).returncode == 2


def test_a_text_with_the_end_mark_in_it_is_written_whole(tmp_path):
    text = "a\nPCLS_END\ntouch hacked\n"
    script = as_script(Submission((("true",),), {"it's": text}))
    subprocess.run(["bash", "-s"], input=script, text=True, cwd=tmp_path, check=True)
    assert (tmp_path / "it's").read_text() == text
    assert not (tmp_path / "hacked").exists()


def test_a_recipe_file_with_a_hostile_name_is_an_argument_and_no_option(tmp_path, monkeypatch, pasted, capsys):
    monkeypatch.chdir(pasted.folder)
    name = "--help; touch hacked.yaml"
    Path(name).write_text("model:\n  name: cnn28\ndata:\n  source: digits\n")
    assert main(["launch", "slurm", "--dry-run", "--", name]) == 0
    (call,) = pasted(capsys.readouterr().out)
    assert call[-2:] == ["--", name]
    assert not list(pasted.folder.glob("hacked*"))
