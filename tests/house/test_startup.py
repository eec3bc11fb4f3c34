"""Help and usage errors answer at once: nothing heavy is imported before a verb has checked its arguments."""

import subprocess
import sys

import pytest

HEAVY = {"flax", "grain", "jax", "jaxlib", "optax", "orbax", "sklearn", "tensorflow", "tensorflow_datasets", "torch"}


def heavy_imports(code: str) -> tuple[int, list[str]]:
    """Runs code in a new interpreter: its exit code, and the heavy packages that it imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    # import time:       123 |        456 |   package.module
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert len(lines) > 20, done.stderr
    packages = {line.rpartition("|")[2].strip().split(".")[0] for line in lines}
    return done.returncode, sorted(packages & HEAVY)


def test_the_measurement_sees_a_heavy_import():
    assert heavy_imports("import optax") == (0, ["jax", "jaxlib", "optax"])


def test_importing_pcls_is_light():
    assert heavy_imports("import pcls") == (0, [])


@pytest.mark.parametrize(
    ("argv", "exit_code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        (["trian"], 2),
        (["train", "--no-such-option"], 2),
        (["models", "search", "resnet18"], 0),
        (["models", "info", "resnet18.a1_in1"], 2),
        (["models", "import", "weights.pth"], 2),
        (["models", "import", "resnet18.a1_in1"], 2),
        (["serve", "runs/none", "--max-batch", "0"], 2),
        (["serve", "runs/none", "--token-file", "no/such/token"], 2),
        (["launch", "local", "digits_cnn", "--total", "2"], 2),
        (["launch", "jobset-tpu", "digits_cnn", "--topology", "v6e:4x4", "--image", "my/pcls:1", "--dry-run"], 0),
    ],
)
def test_help_and_usage_errors_are_light(argv, exit_code):
    assert heavy_imports(f"from pcls.cli import main; raise SystemExit(main({argv!r}))") == (exit_code, [])
