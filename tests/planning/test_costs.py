"""Programs whose costs are known by hand, compiled for eight devices, and what libtpu's compiler writes."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pcls.planning.costs import Collective, Costs, OutOfMemory, out_of_memory, read_collectives, read_costs

KIB, GIB = 2**10, 2**30


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    """Two by four devices, not in the order of their numbers: programs speak of places in the mesh."""
    devices = np.array(jax.devices())[[7, 3, 1, 0, 2, 4, 6, 5]].reshape(2, 4)
    return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


@pytest.fixture
def compiled(mesh):
    """Compiles a function of each device's part of a float32 array [rows, 64], split over all devices, and reads it."""

    def compile_and_read(fn, rows, out=("data", "fsdp"), donate=()) -> Costs:
        split = NamedSharding(mesh, P(("data", "fsdp")))
        part = jax.shard_map(fn, mesh=mesh, in_specs=P(("data", "fsdp")), out_specs=P(out), check_vma=False)
        argument = jax.ShapeDtypeStruct((rows, 64), jnp.float32, sharding=split)
        return read_costs(jax.jit(part, donate_argnums=donate).lower(argument).compile(), list(mesh.devices.flat))

    return compile_and_read


# A device's part is 32 rows of 64 floats: 8 KiB.
@pytest.mark.parametrize(
    ("fn", "out", "expected"),
    [
        (lambda x: lax.psum(x, ("data", "fsdp")), None, Collective("all-reduce", 8 * KIB, 8)),
        (lambda x: lax.psum(x, "data"), "fsdp", Collective("all-reduce", 8 * KIB, 2)),
        (lambda x: lax.all_gather(x, "fsdp", tiled=True), "data", Collective("all-gather", 32 * KIB, 4)),
        (
            lambda x: lax.psum_scatter(x, "fsdp", tiled=True),
            ("data", "fsdp"),
            Collective("reduce-scatter", 8 * KIB, 4),
        ),
        (
            lambda x: lax.all_to_all(x, "fsdp", 0, 1, tiled=True),
            ("data", "fsdp"),
            Collective("all-to-all", 8 * KIB, 4),
        ),
        (
            lambda x: lax.ppermute(x, "fsdp", [(0, 1), (1, 2), (2, 3), (3, 0)]),
            ("data", "fsdp"),
            Collective("collective-permute", 8 * KIB, 2),
        ),
    ],
)
def test_each_kind_is_found_with_its_bytes_and_group(compiled, fn, out, expected):
    assert compiled(fn, 256, out).collectives == (expected,)


def test_a_collective_in_a_loop_counts_as_often_as_the_loop_runs(compiled):
    def fn(x):
        return lax.scan(lambda carry, _: (jnp.tanh(lax.psum(carry, "fsdp")), None), x, None, length=5)[0]

    program = compiled(fn, 256)
    assert program.loops == (5,)
    assert program.by_kind() == {"all-reduce": (5, 5 * 8 * KIB)}


def test_a_program_without_collectives_has_none(compiled):
    program = compiled(lambda x: 2 * x, 256)
    assert (program.collectives, program.by_kind(), program.largest_all_gather) == ((), {}, 0)


def test_costs_are_those_of_one_device(compiled):
    program = compiled(lambda x: x @ x.T, 256)
    assert program.devices == 8
    # 32 x 32 sums of 64 products; the transposition and the like may add a little.
    assert program.flops == pytest.approx(2 * 32 * 32 * 64, rel=0.02)
    assert program.bytes_accessed >= 8 * KIB + 4 * KIB
    assert (program.memory.arguments, program.memory.outputs) == (8 * KIB, 4 * KIB)


def test_a_donated_buffer_is_counted_and_needs_its_memory_once(compiled):
    kept, donated = compiled(lambda x: 2 * x, 256), compiled(lambda x: 2 * x, 256, donate=0)
    assert (kept.donated, donated.donated) == (0, 1)
    assert donated.memory.aliased == 8 * KIB
    assert kept.memory.peak - donated.memory.peak == 8 * KIB


def test_the_peak_is_no_less_than_the_compilers_own(compiled):
    memory = compiled(lambda x: jnp.tanh(x @ x.T) @ x, 256).memory
    assert memory.compiler_peak is not None
    assert memory.compiler_peak <= memory.peak == memory.arguments + memory.outputs + memory.temporaries + memory.code


def test_groups_across_slices_are_told_from_those_within(mesh):
    """Devices of a GPU cluster have slices in one program; places 0 to 3 of the mesh are one, 4 to 7 the other."""
    split = NamedSharding(mesh, P(("data", "fsdp")))
    argument = jax.ShapeDtypeStruct((256, 64), jnp.float32, sharding=split)

    def crossing(axis):
        fn = jax.shard_map(lambda x: lax.psum(x, axis), mesh=mesh, in_specs=split.spec, out_specs=P(), check_vma=False)
        (collective,), _ = read_collectives(jax.jit(fn).lower(argument).compile().as_text(), [0, 0, 0, 0, 1, 1, 1, 1])
        return collective.crosses_slices

    assert [crossing(axis) for axis in ("data", "fsdp", ("data", "fsdp"))] == [True, False, True]


# Lines of programs that libtpu's compiler wrote for 16 chips, then for two slices of four; details left out.
TPU_STEP = """\
HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }, num_partitions=16

%add.clone (x.3: f32[], y.1: f32[]) -> f32[] {
  ROOT %add.5 = f32[]{:T(128)} add(%x.3, %y.1)
}

%body.1_spmd (wide.param.2: (s32[], f32[128,512])) -> (s32[], f32[128,512]) {
  %all-reduce.2 = f32[512]{0:T(512)S(1)} all-reduce(%fusion.2), channel_id=1, \
replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_1'}, to_apply=%add.clone
}

%condition.1_spmd (wide.param.1: (s32[], f32[128,512])) -> pred[] {
  %constant.3.clone.1 = s32[]{:T(128)} constant(10)
  ROOT %lt.3 = pred[]{:T(512)} compare(%get-tuple-element.28, %constant.3.clone.1), direction=LT
}

ENTRY %main.0_spmd (param: f32[1024,2048], param.1: f32[256,1024]) -> (f32[1024,2048], f32[]) {
  %while.9 = (s32[]{:T(128)}, f32[128,512]{1,0:T(8,128)S(1)}) while(%tuple.20), condition=%condition.1_spmd, \
body=%body.1_spmd, metadata={op_name="jit(step)/while"}
  %all-gather.1 = bf16[1024,2048]{1,0:T(8,128)(2,1)S(1)} all-gather(%convert.2), channel_id=2, \
replica_groups=[4,4]<=[4,4]T(1,0), dimensions={0}, use_global_device_ids=true, metadata={op_name="dot_general"}
  %collective-permute-start = (f32[128,512]{1,0:T(8,128)S(1)}, f32[128,512]{1,0:T(8,128)}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%copy-done.1), channel_id=1, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %collective-permute-done = f32[128,512]{1,0:T(8,128)} collective-permute-done(%collective-permute-start)
  %psum_invariant.3 = (f32[2048,1024]{0,1:T(8,128)S(1)}, f32[2048,512]{1,0:T(8,128)S(1)}, f32[]{:T(128)}) \
all-reduce(%fusion, %fusion.4, %get-tuple-element.3), channel_id=6, replica_groups=mesh['axis_0'=16,'axis_1'=1] \
{'axis_0'}, use_global_device_ids=true, to_apply=%add.clone
}
"""
TPU_TWO_SLICES = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

ENTRY %main.0_spmd (param: f32[1024,2048], param.1: f32[512,1024]) -> (f32[1024,2048], f32[]) {
  %reduce-scatter.3 = f32[512,512]{1,0:T(8,128)} reduce-scatter(%fusion.4), channel_id=2, replica_groups={{0,1,2,3}}, \
use_global_device_ids=true, dimensions={0}, to_apply=%add.1.clone
  %send.1 = (f32[256,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%bitcast.2, %after-all.1), channel_id=4, \
is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv.1 = (f32[256,8,128]{2,1,0:T(8,128)}, u32[], token[]) recv(%after-all.1), channel_id=3, \
is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv-done.1 = (f32[256,8,128]{2,1,0:T(8,128)}, token[]) recv-done(%recv.1), channel_id=3, is_host_transfer=true
  %all-gather.12 = f32[2048,512]{1,0:T(8,128)S(1)} all-gather(%bitcast.3), channel_id=2, replica_groups={{0,1,2,3}}, \
dimensions={0}, use_global_device_ids=true, frontend_attributes={async_collective_name="all-gather-start.1"}
}
"""


def test_a_tpu_program_is_read():
    collectives, loops = read_collectives(TPU_STEP, [0] * 16)
    assert loops == (10,)
    assert collectives == (
        Collective("all-reduce", 4 * 512, 4, count=10),
        Collective("all-gather", 2 * 1024 * 2048, 4),
        Collective("collective-permute", 4 * 128 * 512, 2),
        Collective("all-reduce", 4 * (2048 * 1024 + 2048 * 512 + 1), 16),
    )


def test_a_transfer_by_the_hosts_of_two_slices_is_a_collective_across_them():
    collectives, _ = read_collectives(TPU_TWO_SLICES, [0] * 4 + [1] * 4)
    assert collectives == (
        Collective("reduce-scatter", 4 * 2048 * 512, 4),
        Collective("all-reduce", 4 * 512 * 512, 2, crosses_slices=True),
        Collective("all-gather", 4 * 2048 * 512, 4),
    )


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (
            "((f32[8,2], f32[4]), (f32[32,2], f32[16])) all-gather-start(%a, %b), replica_groups=[2,4]<=[8]",
            Collective("all-gather", 4 * (64 + 16), 4),
        ),
        ("f32[8]{0} all-reduce-start(%a), replica_groups={}", Collective("all-reduce", 32, 8)),
        (
            "((f32[32]), f32[8], u32[]) reduce-scatter-start(%a), replica_groups=mesh['a'=2,'b'=4], "
            "device_ids=([4,2]T(1,0)) {'b'}",
            Collective("reduce-scatter", 4 * 32, 4),
        ),
        ("s4[6]{0} all-to-all(%a), replica_groups={{0,1,2},{3,4,5}}", Collective("all-to-all", 3, 3)),
        ("pred[5]{0} all-reduce(%a), replica_groups={{0,1}}", Collective("all-reduce", 5, 2)),
        ("f8e4m3fn[6]{0} all-reduce(%a), replica_groups={{0,1}}", Collective("all-reduce", 6, 2)),
    ],
)
def test_forms_of_other_compilers_are_read(start, expected):
    text = f"HloModule m, num_partitions=8\n\nENTRY %main (a: f32[8]) -> f32[8] {{\n  %x = {start}\n}}\n"
    assert read_collectives(text, [0] * 8)[0] == (expected,)


def test_an_asynchronous_computation_counts_once():
    text = """\
HloModule m, num_partitions=8

%async (p: f32[8]) -> f32[8] {
  ROOT %all-reduce.1 = f32[8]{0} all-reduce(%p), replica_groups={}, to_apply=%add
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %s = ((f32[8]), f32[8], u32[]) async-start(%a), calls=%async
  %u = ((f32[8]), f32[8], u32[]) async-update(%s), calls=%async
  ROOT %d = f32[8] async-done(%u), calls=%async
}
"""
    assert read_collectives(text, [0] * 8)[0] == (Collective("all-reduce", 32, 8),)


def test_the_mesh_orders_devices_as_it_says():
    """Devices 0, 2, 4, 6 are the first group: with four devices a slice it crosses."""
    line = "f32[8]{0} all-reduce(%a), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}"
    text = f"HloModule m, num_partitions=8\n\nENTRY %main (a: f32[8]) -> f32[8] {{\n  %x = {line}\n}}\n"
    (within,), _ = read_collectives(text, [0, 1] * 4)
    (across,), _ = read_collectives(text, [0, 0, 0, 0, 1, 1, 1, 1])
    assert (within.crosses_slices, across.crosses_slices) == (False, True)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        # jax 0.10 and 0.12
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (57.22G) "
            "exceeds available HBM (31.25G).",
            OutOfMemory(round(57.22 * GIB), round(31.25 * GIB)),
        ),
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (1.17T) exceeds available HBM (31.24G). HLO module: jit_f.\nSee "
            "https://openxla.org/xla/errors/error_1000 for more details.",
            OutOfMemory(round(1.17 * 1024 * GIB), round(31.24 * GIB)),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 45.10G of 31.25G hbm. Exceeded hbm "
            "capacity by 13.85G.",
            OutOfMemory(round(45.10 * GIB), round(31.25 * GIB)),
        ),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes.", OutOfMemory(None, None)),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 129.00M of 128.00M vmem.", None),
        ("INVALID_ARGUMENT: out of memory", None),
    ],
)
def test_the_compilers_complaint_is_understood(message, expected):
    assert out_of_memory(RuntimeError(message)) == expected


TPU_PROGRAM = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from pcls.planning.costs import out_of_memory, read_costs
from pcls.planning.topology import open_topology

devices = open_topology("v6e:2x2")
mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
weights = jax.ShapeDtypeStruct((512, 256), jnp.float32, sharding=whole)

def step(w, x):
    return w - jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(w)

def compiled(rows):
    images = jax.ShapeDtypeStruct((rows, 512), jnp.float32, sharding=split)
    return jax.jit(step, donate_argnums=0, out_shardings=whole).lower(weights, images).compile()

program = read_costs(compiled(1024), devices)
try:
    compiled(2**26)
except jax.errors.JaxRuntimeError as error:
    lacking = out_of_memory(error)
print(json.dumps({"program": [program.donated, program.memory.aliased, program.memory.arguments, program.by_kind()],
                  "memory": [lacking.used, lacking.limit]}))
"""


@pytest.mark.tpu
def test_libtpu_tells_memory_collectives_and_what_does_not_fit():
    pytest.importorskip("libtpu", reason="libtpu is not installed (the extra tpu)")
    hidden = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
    done = subprocess.run(
        [sys.executable, "-c", TPU_PROGRAM],
        capture_output=True,
        text=True,
        timeout=300,
        env={name: value for name, value in os.environ.items() if name not in hidden},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    weights, images = 4 * 512 * 256, 4 * 256 * 512
    assert found["program"] == [1, weights, weights + images, {"all-reduce": [1, weights]}]
    used, limit = found["memory"]
    # 2**24 rows of 512 floats a chip, and no v6e has more than 32 GiB.
    assert used >= 32 * GIB > limit > 30 * GIB
