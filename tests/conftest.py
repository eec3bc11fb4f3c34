"""What every test shares. The environment is set here, before any test imports jax: jax reads it only once."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parent.parent

os.environ["JAX_PLATFORMS"] = "cpu"

# Eight devices, so that sharding is tested on any machine; a test of one device makes a mesh of one. `make test-faults`
# asks for fewer: hundreds of runs are long on eight.
DEVICES = "--xla_force_host_platform_device_count"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()
# Eight devices on two busy cores may take longer than 40 seconds to meet; XLA would then abort.
os.environ["XLA_FLAGS"] += " --xla_cpu_collective_call_terminate_timeout_seconds=600"

# Compiled programs are kept between tests and between runs, the small ones too: most of a test's time is compilation.
# Child processes inherit all of this.
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(REPO / ".cache" / f"xla-{PYTHON}")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


# A shell starts what runs in its background with interrupts ignored, and all that is started by that inherits it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: as the last one, it would run while the other process has nothing left to do."""
    items.sort(key=lambda item: item.path.name != "test_recipes.py")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of original data files beside the repository; its README.md says what is in it."""
    folder = REPO.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the original data files (../shared/data) are not here")
    return folder


@pytest.fixture(scope="session")
def tiny() -> dict[str, object]:
    """Overrides of `digits_cnn` for runs of a second; tests that only change model or length share its compilation."""
    return {
        "data.image_size": 10,
        "augment.shift": 1,
        "train.duration": "12 steps",
        "train.batch_size": 32,
        "train.ema_decay": 0.9,
        "evaluate.every": "6 steps",
        "checkpoint.every": "4 steps",
        "checkpoint.keep": 3,
    }


@pytest.fixture(scope="session")
def finished_run(tiny, tmp_path_factory) -> Path:
    """The folder of a finished run of `digits_cnn`, tiny. Read it; whoever changes it takes a copy."""
    import pcls

    return pcls.train("digits_cnn", tiny | {"run.dir": str(tmp_path_factory.mktemp("finished") / "run")}).path


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium. One for all tests: playwright's loop runs once a process."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no chromium on PATH")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def stop_after(monkeypatch):
    """A function that makes the next run in this process stop after a step, as if it had been asked to."""

    def arrange(step: int) -> None:
        monkeypatch.setattr("pcls.run.session.stop_requests", lambda *_: nullcontext(lambda now: now == step))

    return arrange


@pytest.fixture(scope="session")
def final_state():
    """A function from a run's folder to every leaf of its newest checkpoint, by name."""
    import jax

    from pcls.checkpoint.store import CheckpointStore, named_leaves
    from pcls.run.evaluate import saved_preprocessing
    from pcls.run.folder import RunFolder
    from pcls.run.setup import prepare

    def read(path: Path) -> dict[str, Any]:
        folder = RunFolder(path)
        setup = prepare(folder.recipe(), saved_preprocessing(folder))
        store = CheckpointStore(folder.checkpoints, warn=pytest.fail, agree=int)
        try:
            restored = store.restore(setup.state_shapes, rename=False)
        finally:
            store.close()
        assert restored is not None
        return named_leaves(jax.device_get(restored[0]))

    return read


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one tiny checkpoint."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def timm() -> Any:
    """timm, where PyTorch is one for CPUs."""
    pytest.importorskip("torch")
    from torch import library

    # torchvision's wheel is made for CUDA and leaves its operators out without it; what is used here needs none of
    # them, but its import does.
    missing = library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        missing.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return pytest.importorskip("timm")
