"""What a compiled program costs on each device, by the compiler's own account: memory, FLOPs, traffic, collectives."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Memory:
    """Bytes on one device by kind.

    Attributes:
      arguments, outputs: what goes in and comes out; `aliased` bytes are both (donated buffers).
      temporaries: between the two.
      code: the program itself.
      compiler_peak: the compiler's own figure, where it gives one: without the code; on CPU only what lives at once, on
        TPU with donated buffers counted twice.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int
    compiler_peak: int | None

    @property
    def peak(self) -> int:
        """Everything at once: what a device must have free."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclass(frozen=True)
class Collective:
    """One collective operation of the program.

    Attributes:
      kind: one of `KINDS`.
      bytes: the whole buffer on one device, once: what an all-reduce sums, what an all-gather ends with, what a
        reduce-scatter starts with, what an all-to-all or a permutation moves.
      group_size: devices that exchange with each other.
      count: executions a call, more than 1 inside a loop.
      crosses_slices: whether a group reaches over the data center network.
    """

    kind: str
    bytes: int
    group_size: int
    count: int = 1
    crosses_slices: bool = False


@dataclass(frozen=True)
class Costs:
    """A compiled program's costs.

    Attributes:
      devices: that it runs on.
      memory: bytes on one device.
      flops, bytes_accessed: on one device, as XLA counts them: the body of a loop once, however often it runs.
      collectives: one a instruction, in the order of the text.
      donated: buffers that an output takes over.
      loops: how often each loop runs; None where the text does not tell (its collectives then count once).
    """

    devices: int
    memory: Memory
    flops: float
    bytes_accessed: float
    collectives: tuple[Collective, ...]
    donated: int
    loops: tuple[int | None, ...] = ()

    @property
    def largest_all_gather(self) -> int:
        """Bytes of the largest buffer that an all-gather makes; 0 without any."""
        return max((each.bytes for each in self.collectives if each.kind == "all-gather"), default=0)

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Executions and bytes a call of every kind that occurs."""
        counts: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for each in self.collectives:
            counts[each.kind] += each.count
            sizes[each.kind] += each.count * each.bytes
        return {kind: (counts[kind], sizes[kind]) for kind in KINDS if kind in counts}


@dataclass(frozen=True)
class OutOfMemory:
    """Bytes that a program would need on one device, and that there are; None where the compiler does not say."""

    used: int | None
    limit: int | None


def read_costs(compiled: jax.stages.Compiled, devices: Sequence[jax.Device]) -> Costs:
    """Reads memory, costs and collectives of a program.

    Args:
      compiled: from `jit(...).lower(...).compile()`, for a TPU topology or for CPU devices.
      devices: in the order of its mesh: the program's text speaks of them by place.
    """
    text = compiled.as_text() or ""
    costs: Any = compiled.cost_analysis() or {}
    slices = [getattr(device, "slice_index", None) or 0 for device in devices]
    collectives, loops = read_collectives(text, slices)
    return Costs(
        devices=len(devices),
        memory=_read_memory(compiled.memory_analysis()),
        flops=float(costs.get("flops", 0.0)),
        bytes_accessed=float(costs.get("bytes accessed", 0.0)),
        collectives=collectives,
        donated=len(ALIAS.findall(text.partition("\n")[0])),
        loops=loops,
    )


def read_collectives(text: str, slices: Sequence[int]) -> tuple[tuple[Collective, ...], tuple[int | None, ...]]:
    """The collectives of an HLO module, and how often each of its loops runs.

    Args:
      text: `compiled.as_text()`.
      slices: the slice of every device, in the order of the mesh.
    """
    computations, entry = _computations(text)
    executions, loops = _executions(computations, entry)
    partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    # libtpu compiles one program for all slices, in which groups are within a slice and transfers by hosts join slices.
    joined_by_hosts = partitions is not None and int(partitions[1]) < len(slices)
    places = [0] * int(partitions[1]) if partitions and joined_by_hosts else slices
    found = (
        _transfer(match, len(set(slices)), executions[name]) or _collective(match, places, executions[name])
        for name, lines in computations.items()
        if executions[name]
        for line in lines
        if (match := INSTRUCTION.match(line))
    )
    return tuple(each for each in found if each is not None), tuple(loops)


def out_of_memory(error: Exception) -> OutOfMemory | None:
    """What a failed compilation or call lacked; None where it failed for another reason than the device's memory."""
    message = str(error)
    if "RESOURCE_EXHAUSTED" not in message or not re.search(r"(?i)out of memory(?! in memory space (?!hbm))", message):
        return None
    sizes = USED_OF_LIMIT.search(message)
    if sizes is None:
        return OutOfMemory(None, None)
    used, limit = (round(float(n) * UNITS[unit]) for n, unit in SIZE.findall(sizes[0]))
    return OutOfMemory(used, limit)


# Two phases of libtpu's compiler say it in their own words.
USED_OF_LIMIT = re.compile(
    r"Used [\d.]+[KMGT]? of [\d.]+[KMGT]? hbm|\([\d.]+[KMGT]?\) exceeds available HBM \([\d.]+[KMGT]?\)"
)
SIZE = re.compile(r"([\d.]*\d)([KMGT]?)")
UNITS = {unit: 1024**power for power, unit in enumerate(("", "K", "M", "G", "T"))}

# {0}: (0, {}, may-alias): output 0 takes over argument 0.
ALIAS = re.compile(r"\{[\d, ]*\}: \(\d+, \{[\d, ]*\}, (?:may|must)-alias\)")
COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) \(.*\{$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?[\w.-]+ = (?P<type>\(.*?\)|\S+) (?P<opcode>[a-z][a-z0-9-]*)\(")
CALLEES = re.compile(
    r"\b(calls|body|condition|to_apply|branch_computations|true_computation|false_computation)="
    r"\{?(%[\w.-]+(?:, ?%[\w.-]+)*)"
)
SHAPE = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")


def _read_memory(stats: Any) -> Memory:
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
        compiler_peak=getattr(stats, "peak_memory_in_bytes", None) or None,
    )


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation by name, and the name of the one that a call starts with."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            lines = computations[head["name"]] = []
            entry = head["name"] if head["entry"] else entry
        elif line.startswith(" "):
            lines.append(line)
    return computations, entry


def _executions(computations: dict[str, list[str]], entry: str) -> tuple[Counter[str], list[int | None]]:
    """How often a call runs each computation (of a conditional every branch), and the trips of each loop."""
    executions: Counter[str] = Counter()
    loops: list[int | None] = []

    def visit(name: str, times: int) -> None:
        """Counts a computation and those that it calls."""
        executions[name] += times
        for line in computations[name]:
            callees = [(key, callee.strip(" %")) for key, names in CALLEES.findall(line) for callee in names.split(",")]
            if not callees or re.search(r" async-(update|done)\(", line):  # they name what async-start has begun
                continue
            trips: int | None = 1
            if " while(" in line:
                trips = _trips(line, computations.get(dict(callees).get("condition", ""), []))
                loops.append(trips)
            for key, callee in callees:
                if callee in computations:
                    visit(callee, times * (trips or 1) if key == "body" else times)

    if entry:
        visit(entry, 1)
    return executions, loops


def _trips(line: str, condition: list[str]) -> int | None:
    """The trips of a loop: written beside it on CPU, on TPU the one constant of its condition; None without either."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line):
        return int(known[1])
    limits = [int(n) for row in condition for n in re.findall(r"= [su]32\[\]\S* constant\((\d+)\)", row)]
    return limits[0] if len(limits) == 1 else None


def _collective(instruction: re.Match[str], places: Sequence[int], count: int) -> Collective | None:
    """The collective of an instruction; None for any other, and for the -done half of a pair."""
    opcode, result = instruction["opcode"], instruction["type"]
    kind = opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    if opcode != kind and kind != "all-reduce":
        result = _elements(result)[1]  # (operands, results, contexts)
    groups = _groups(instruction.string, len(places))
    size = max(len(group) for group in groups)
    crosses = any(len({places[device] for device in group}) > 1 for group in groups)
    return Collective(kind, _payload(kind, result, size), size, count, crosses)


def _transfer(instruction: re.Match[str], slices: int, count: int) -> Collective | None:
    """A collective between slices, one device of each taking part; what it receives comes first in the tuple."""
    across = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.string)
    if instruction["opcode"] != "recv" or across is None:
        return None
    kind = across[1].lower().replace("_", "-")
    return Collective(
        kind, _payload(kind, _elements(instruction["type"])[0], slices), slices, count, crosses_slices=True
    )


def _payload(kind: str, result: str, group_size: int) -> int:
    """`Collective.bytes` from the type of the result."""
    sizes = ((int(bits or 8), dimensions) for _, bits, dimensions in SHAPE.findall(result))
    total = sum(math.prod(int(n) for n in dimensions.split(",") if n) * bits for bits, dimensions in sizes) // 8
    return total * group_size if kind == "reduce-scatter" else total


def _elements(tuple_type: str) -> list[str]:
    """`((f32[2], f32[3]), u32[])` to `(f32[2], f32[3])` and `u32[]`."""
    elements, depth = [""], 0
    for character in tuple_type.removeprefix("(").removesuffix(")"):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            elements.append("")
        else:
            elements[-1] += character
    return [element.strip() for element in elements]


def _groups(line: str, partitions: int) -> list[list[int]]:
    """The groups of a collective, in any of the ways that XLA writes them.

    {{0,1},{2,3}}                        the groups
    [2,4]<=[8], [4,2]<=[2,4]T(1,0)       groups x members from 0, 1, 2, ... in that shape, transposed
    mesh['data'=2,'fsdp'=4] {'fsdp'}     along axes of a mesh; device_ids=([4,2]T(1,0)) orders its devices
    """
    if pairs := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", line):
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", pairs[1])]
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", line):
        return _iota(iota[2]).reshape(_numbers(iota[1])).tolist()
    mesh = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((\[.*?)\))? \{([^}]*)\}", line)
    if mesh is None:
        return [list(range(partitions))]  # {} is all of them
    names, sizes = zip(*re.findall(r"'([^']+)'=(\d+)", mesh[1]), strict=True)
    ids = _iota(mesh[2]) if mesh[2] else np.arange(math.prod(map(int, sizes)))
    along = [names.index(name) for name in re.findall(r"'([^']+)'", mesh[3])]
    groups = np.moveaxis(ids.reshape([int(n) for n in sizes]), along, range(-len(along), 0))
    return groups.reshape(-1, math.prod(int(sizes[axis]) for axis in along)).tolist()


def _iota(text: str) -> np.ndarray[Any, Any]:
    """`[2,4]T(1,0)`: 0 to 7 as 2 x 4, transposed."""
    shape, _, order = text.partition("T")
    dimensions = _numbers(shape)
    return np.arange(math.prod(dimensions)).reshape(dimensions).transpose(_numbers(order) or range(len(dimensions)))


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]
