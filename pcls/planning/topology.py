"""Devices to compile for without having them: a TPU slice through libtpu, or simulated CPU devices.

v5e:4x4        sixteen chips, four by four        v5p     four chips, the generation's smallest whole host
v4:2x2x2       eight chips                        cpu-8   eight simulated devices
"""

from __future__ import annotations

import atexit
import difflib
import importlib.util
import math
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pcls.errors import UserError

if TYPE_CHECKING:
    import jax

Shape = tuple[int, ...]

MAX_SIMULATED_DEVICES = 1024
DEVICE_COUNT_FLAG = "--xla_force_host_platform_device_count"


@dataclass(frozen=True)
class Generation:
    """A TPU generation, and the slices that its documentation lists.

    Attributes:
      name: as in `v5e:4x4`, and as libtpu calls it.
      accelerator: the name of its accelerator types, as in `v5litepod-16`.
      cores: TensorCores of a chip.
      shapes: slices that are listed one by one, in chips.
      largest_cube: up to this many chips, any A x B x C of multiples of four with A <= B <= C is a slice as well.
    """

    name: str
    accelerator: str
    cores: int
    shapes: tuple[Shape, ...]
    largest_cube: int = 0

    @property
    def default(self) -> Shape:
        """The four chips of one host: what a bare name such as `v5p` stands for."""
        return next(shape for shape in self.shapes if math.prod(shape) == 4)

    def has(self, shape: Shape) -> bool:
        """Whether there is such a slice. libtpu itself also takes shapes that nobody can rent, and dies on zeros."""
        cube = len(shape) == 3 and all(n > 0 and n % 4 == 0 for n in shape) and list(shape) == sorted(shape)
        return shape in self.shapes or (cube and math.prod(shape) <= self.largest_cube)

    def allowed(self) -> str:
        """The slices in words."""
        listed = ", ".join(_written(shape) for shape in self.shapes)
        if not self.largest_cube:
            return listed
        return f"{listed}, and multiples of four in rising order from 4x4x4 up to {self.largest_cube:,} chips"


_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_DEEP = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
# Source: the page of each generation under https://docs.cloud.google.com/tpu/docs
GENERATIONS = {
    generation.name: generation
    for generation in (
        Generation("v4", "v4", 2, _DEEP, largest_cube=4096),
        Generation("v5e", "v5litepod", 1, _FLAT),
        Generation("v5p", "v5p", 2, _DEEP, largest_cube=6144),
        Generation("v6e", "v6e", 1, _FLAT),
        Generation("tpu7x", "tpu7x", 2, _DEEP, largest_cube=9216),
    )
}


@dataclass(frozen=True)
class Topology:
    """What to compile for: `slices` TPU slices of `shape` chips each, or simulated CPU devices (no generation)."""

    generation: Generation | None
    shape: Shape
    slices: int = 1

    @property
    def chips(self) -> int:
        """Chips of all slices together; for CPUs the devices."""
        return self.slices * math.prod(self.shape)

    def __str__(self) -> str:
        if self.generation is None:
            return f"cpu-{self.chips}"
        return f"{self.generation.name}:{_written(self.shape)}" + (f" x {self.slices}" if self.slices > 1 else "")


def parse_topology(text: str, slices: int = 1) -> Topology:
    """Reads `v5e:4x4`, `v5p` or `cpu-8`.

    Args:
      text: generation and chips along each axis of one slice, a bare generation (four chips), or `cpu-N`.
      slices: slices of that shape, joined by the data center network.

    Raises:
      UserError: a name, a shape or a number that there is not, with what there is.
    """
    if slices < 1:
        raise UserError(f"slices is {slices}: 1 or more are needed")
    name, colon, written = text.strip().lower().partition(":")
    if simulated := re.fullmatch(r"cpu-(\d{1,6})", name):
        return _simulated(text, int(simulated[1]) if not colon else 0, slices)
    generation = GENERATIONS.get(name)
    if generation is None:
        raise UserError(f"topology {text!r} is not known; {_known(name)}")
    if not colon:
        return Topology(generation, generation.default, slices)
    if not re.fullmatch(r"\d{1,5}(x\d{1,5})*", written):
        example = f"{name}:{_written(generation.default)}"
        raise UserError(f"topology {text!r} has no shape after the colon; write chips by axis, for example {example}")
    shape = tuple(int(n) for n in written.split("x"))
    if not generation.has(shape):
        raise UserError(f"topology {text!r}: {name} has no slice of {written}; it has {generation.allowed()}")
    return Topology(generation, shape, slices)


def prepare_environment(topology: Topology) -> None:
    """Sets what jax and libtpu read when they start; call it before anything asks jax for devices.

    Compiling for TPUs runs beside the CPU backend: no accelerator of this machine is touched. libtpu takes itself to be
    on a machine of the slice and asks which; told here, it need not ask, nor complain on stderr that nobody answers.
    """
    _configure("jax_platforms", "cpu")
    if topology.generation is None:
        flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(DEVICE_COUNT_FLAG)]
        os.environ["XLA_FLAGS"] = " ".join([*flags, f"{DEVICE_COUNT_FLAG}={topology.chips}"])
        return
    # A program for a TPU cannot be read back where there is none: jax would warn of each, and compile it again.
    _configure("jax_enable_compilation_cache", False)
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    cores = topology.generation.cores * math.prod(topology.shape)
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{topology.generation.accelerator}-{cores}")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    if "TPU_LOG_DIR" not in os.environ:
        os.environ["TPU_LOG_DIR"] = folder = tempfile.mkdtemp(prefix="pcls-libtpu-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def open_topology(text: str, *, slices: int = 1) -> list[jax.Device]:
    """The devices of a topology, to build a mesh from and compile for; nothing can run on those of a TPU.

    Args:
      text, slices: as `parse_topology` takes them.

    Returns:
      One device a chip (two of a TPU7x), in jax's order. Those of several slices have a `slice_index`.

    Raises:
      UserError: as `parse_topology`; libtpu is not installed or refuses; jax has started with fewer CPU devices.
    """
    topology = parse_topology(text, slices)
    prepare_environment(topology)
    return _cpu_devices(topology) if topology.generation is None else _tpu_devices(topology, topology.generation)


def _configure(option: str, value: str | bool) -> None:
    """Sets an option of jax, whether it is imported already (and has read its variables) or not."""
    os.environ[option.upper()] = str(value).lower()
    if "jax" in sys.modules:
        sys.modules["jax"].config.update(option, value)


def _simulated(text: str, devices: int, slices: int) -> Topology:
    if not 1 <= devices <= MAX_SIMULATED_DEVICES:
        raise UserError(f"topology {text!r}: write cpu-N with N from 1 to {MAX_SIMULATED_DEVICES}, for example cpu-8")
    if slices > 1:
        raise UserError(
            f"topology {text!r}: simulated CPU devices have no slices; leave slices at 1, or name a TPU slice"
        )
    return Topology(None, (devices,))


def _known(name: str) -> str:
    nearest = difflib.get_close_matches(name, [*GENERATIONS, "cpu-8"], n=1, cutoff=0.4)
    examples = [f"{known}:{_written(generation.default)}" for known, generation in GENERATIONS.items()]
    return (f"the nearest is {nearest[0]!r}; " if nearest else "") + f"known: {', '.join([*examples, 'cpu-8'])}"


def _written(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _cpu_devices(topology: Topology) -> list[jax.Device]:
    import jax

    devices = jax.devices("cpu")
    if len(devices) < topology.chips:
        raise UserError(
            f"topology {topology} needs {topology.chips} CPU devices and jax has already started with {len(devices)}; "
            "plan in a new process, before anything else uses jax"
        )
    return devices[: topology.chips]


def _tpu_devices(topology: Topology, generation: Generation) -> list[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"topology {topology} needs libtpu, which is not installed; pip install 'pcls[tpu]'")
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if generation.name == "v4":
        # One device a chip, as jax shows them on a v4 machine; without it libtpu lists the two cores by themselves.
        options["chip_config_name"] = "megacore"
    if math.prod(topology.shape) == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    name = f"{generation.name}:{_written(topology.shape)}"
    try:
        return list(topologies.get_topology_desc(name, platform="tpu", **options).devices)
    except JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"topology {topology}: libtpu refuses it ({reason}); it has {generation.allowed()}") from error
