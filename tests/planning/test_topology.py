"""Topologies by name: what there is opens, what there is not is refused in one line that says what there is."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest

from pcls.errors import UserError
from pcls.observe.chips import chip_of
from pcls.planning.topology import GENERATIONS, open_topology, parse_topology, prepare_environment

LIBTPU_VARIABLES = ("TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES", "TPU_LOG_DIR", "TPU_SKIP_MDS_QUERY")
JAX_VARIABLES = ("JAX_PLATFORMS", "JAX_ENABLE_COMPILATION_CACHE")
VARIABLES = ("XLA_FLAGS", "ALLOW_MULTIPLE_LIBTPU_LOAD", *JAX_VARIABLES, *LIBTPU_VARIABLES)

tpu = pytest.mark.tpu


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """What opening a topology sets is as before after each test, and the variables of libtpu are unset in it."""
    cache = jax.config.jax_enable_compilation_cache
    for name in VARIABLES:
        monkeypatch.setenv(name, os.environ.get(name, ""))
    for name in LIBTPU_VARIABLES:
        monkeypatch.delenv(name)
    yield
    jax.config.update("jax_enable_compilation_cache", cache)


@pytest.fixture
def in_new_process():
    """Runs code in a process of its own, where jax has not started: what it prints, and its complaints."""

    def run(code: str) -> tuple[str, str]:
        hidden = {*VARIABLES, "JAX_COMPILATION_CACHE_DIR"}
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    return run


@pytest.fixture
def _libtpu():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed (the extra tpu)")


@pytest.mark.parametrize(
    ("text", "slices", "written", "chips"),
    [
        ("v5e:16x16", 1, "v5e:16x16", 256),
        ("v6e:4x4", 2, "v6e:4x4 x 2", 32),
        (" V4:2x2x4 ", 1, "v4:2x2x4", 16),
        ("v5p", 1, "v5p:2x2x1", 4),
        ("v5e", 3, "v5e:2x2 x 3", 12),
        ("v5p:16x16x24", 1, "v5p:16x16x24", 6144),
        ("cpu-8", 1, "cpu-8", 8),
    ],
)
def test_a_topology_is_read(text, slices, written, chips):
    topology = parse_topology(text, slices)
    assert (str(topology), topology.chips) == (written, chips)


FLAT = "1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"
DEEP = "2x2x1, 2x2x2, 2x2x4, 2x4x4, and multiples of four in rising order from 4x4x4 up to 4,096 chips"
KNOWN = "known: v4:2x2x1, v5e:2x2, v5p:2x2x1, v6e:2x2, tpu7x:2x2x1, cpu-8"


@pytest.mark.parametrize(
    ("text", "slices", "message"),
    [
        ("v5:2x2", 1, f"topology 'v5:2x2' is not known; the nearest is 'v5p'; {KNOWN}"),
        ("cpu", 1, f"topology 'cpu' is not known; the nearest is 'cpu-8'; {KNOWN}"),
        ("", 1, f"topology '' is not known; {KNOWN}"),
        ("v5e:3x5", 1, f"topology 'v5e:3x5': v5e has no slice of 3x5; it has {FLAT}"),
        ("v6e:2x2x2", 1, f"topology 'v6e:2x2x2': v6e has no slice of 2x2x2; it has {FLAT}"),
        ("v4:8x4x4", 1, f"topology 'v4:8x4x4': v4 has no slice of 8x4x4; it has {DEEP}"),
        ("v4:16x16x24", 1, f"topology 'v4:16x16x24': v4 has no slice of 16x16x24; it has {DEEP}"),
        ("v5e:0x0", 1, f"topology 'v5e:0x0': v5e has no slice of 0x0; it has {FLAT}"),
        ("v4:0x4x4", 1, f"topology 'v4:0x4x4': v4 has no slice of 0x4x4; it has {DEEP}"),
        ("v5e:", 1, "topology 'v5e:' has no shape after the colon; write chips by axis, for example v5e:2x2"),
        ("v4:2x-2", 1, "topology 'v4:2x-2' has no shape after the colon; write chips by axis, for example v4:2x2x1"),
        ("cpu-0", 1, "topology 'cpu-0': write cpu-N with N from 1 to 1024, for example cpu-8"),
        ("cpu-8:2", 1, "topology 'cpu-8:2': write cpu-N with N from 1 to 1024, for example cpu-8"),
        ("v5e", 0, "slices is 0: 1 or more are needed"),
        (
            "cpu-8",
            2,
            "topology 'cpu-8': simulated CPU devices have no slices; leave slices at 1, or name a TPU slice",
        ),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(text, slices, message):
    with pytest.raises(UserError) as raised:
        parse_topology(text, slices)
    assert str(raised.value) == message


def test_simulated_devices_are_as_many_as_asked_for():
    assert open_topology("cpu-4") == jax.devices()[:4]


def test_more_simulated_devices_than_jax_has_started_with_are_refused():
    with pytest.raises(UserError) as raised:
        open_topology("cpu-16")
    assert str(raised.value) == (
        "topology cpu-16 needs 16 CPU devices and jax has already started with 8; "
        "plan in a new process, before anything else uses jax"
    )


def test_a_new_process_simulates_any_number_whatever_the_flags_said(in_new_process):
    code = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2 --xla_cpu_enable_fast_math=false"
from pcls.planning.topology import open_topology
print(len(open_topology("cpu-12")), os.environ["XLA_FLAGS"])
"""
    out, _ = in_new_process(code)
    assert out == "12 --xla_cpu_enable_fast_math=false --xla_force_host_platform_device_count=12\n"


def test_libtpu_is_told_what_it_would_ask_for():
    prepare_environment(parse_topology("v5p:2x2x2"))
    assert os.environ["TPU_ACCELERATOR_TYPE"] == "v5p-16"
    assert os.environ["TPU_SKIP_MDS_QUERY"] == "1"


def test_a_missing_libtpu_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as raised:
        open_topology("v5e:4x4")
    assert str(raised.value) == ("topology v5e:4x4 needs libtpu, which is not installed; pip install 'pcls[tpu]'")


@tpu
@pytest.mark.usefixtures("_libtpu")
def test_every_listed_slice_opens_in_silence_with_its_chips(in_new_process):
    texts = [f"{g.name}:{'x'.join(map(str, shape))}" for g in GENERATIONS.values() for shape in g.shapes]
    code = f"""
import json
from pcls.planning.topology import open_topology
opened = {{text: open_topology(text) for text in {texts!r}}}
print(json.dumps({{text: [len(devices), devices[0].device_kind] for text, devices in opened.items()}}))
"""
    out, complaints = in_new_process(code)
    opened = json.loads(out)
    assert list(opened) == texts
    for text, (devices, kind) in opened.items():
        chip = chip_of(kind)
        assert chip is not None, kind
        assert devices == parse_topology(text).chips * chip.devices, text
    assert complaints == ""


@tpu
@pytest.mark.usefixtures("_libtpu")
def test_a_program_for_tpus_stays_out_of_the_compilation_cache(in_new_process, tmp_path):
    code = f"""
import os
os.environ["JAX_COMPILATION_CACHE_DIR"] = {str(tmp_path)!r}
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
import jax
from pcls.planning.topology import open_topology
split = jax.sharding.SingleDeviceSharding(open_topology("v5e:1x1")[0])
jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((8,), "float32", sharding=split)).compile()
"""
    assert in_new_process(code) == ("", "")
    assert list(tmp_path.iterdir()) == []


@tpu
@pytest.mark.usefixtures("_libtpu")
def test_devices_know_their_slice(in_new_process):
    code = """
from pcls.planning.topology import open_topology
print([device.slice_index for device in open_topology("v4", slices=2)])
"""
    assert in_new_process(code) == ("[0, 0, 0, 0, 1, 1, 1, 1]\n", "")
