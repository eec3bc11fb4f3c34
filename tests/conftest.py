"""What every test shares. The environment is set here, before any test imports jax: jax reads it only once."""

import os
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent

os.environ["JAX_PLATFORMS"] = "cpu"

# Eight devices, so that sharding is tested on any machine; a test of one device makes a mesh of one.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

# Compiled programs are kept between tests and between runs, the small ones too: most of a test's time is compilation.
# Child processes inherit all of this.
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(REPO / ".cache" / f"xla-{PYTHON}")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of original data files beside the repository; its README.md says what is in it."""
    folder = REPO.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the original data files (../shared/data) are not here")
    return folder
