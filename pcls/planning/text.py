"""A plan as text and as JSON."""

from __future__ import annotations

from typing import Any

from pcls.errors import UserError
from pcls.models.registry import model_entry
from pcls.planning.plan import RecipePlan
from pcls.planning.roofline import Range
from pcls.training.tables import state_text

GIB = 2**30


def plan_json(plan: RecipePlan) -> dict[str, Any]:
    """Everything that a plan knows; sizes in bytes, times in seconds, `null` for what is not known."""
    costs, prediction, attempt = plan.attempt.costs, plan.prediction, plan.attempt
    memory = None if costs is None else vars(costs.memory) | {"peak": costs.memory.peak}
    collectives = {} if costs is None else costs.by_kind()
    per_image = None if costs is None else costs.bytes_accessed * plan.devices / attempt.batch_size
    return {
        "topology": plan.topology,
        "devices": plan.devices,
        "chip": None if plan.chip is None else plan.chip.name,
        "model": plan.recipe.model.name,
        "batch_size": attempt.batch_size,
        "images_per_device": attempt.batch_size / plan.devices,
        "fits": attempt.fits,
        "needed_bytes": attempt.needed,
        "limit_bytes": attempt.limit,
        "largest_batch": plan.largest_batch,
        "memory": memory,
        "state": [vars(part) for part in plan.state],
        "flops_per_image": None if costs is None else costs.flops * plan.devices / attempt.batch_size,
        "hbm_bytes_per_image": per_image,
        "all_reduces": collectives.get("all-reduce", (0, 0))[0] if costs else None,
        "collectives": {kind: {"count": count, "bytes": size} for kind, (count, size) in collectives.items()},
        "largest_all_gather": None if costs is None else costs.largest_all_gather,
        "donated_buffers": None if costs is None else costs.donated,
        "compute_seconds": None if prediction is None else prediction.compute_seconds,
        "memory_seconds": None if prediction is None else prediction.memory_seconds,
        "network_seconds": None if prediction is None else prediction.network_seconds,
        "bound": None if prediction is None else prediction.bound,
        "step_seconds": None if prediction is None else prediction.step_seconds,
        "images_per_second": None if prediction is None else prediction.images_per_second,
        "images_per_second_per_chip": None if prediction is None else prediction.images_per_second_per_chip,
        "mfu": None if prediction is None else prediction.mfu,
        "compile_seconds": attempt.seconds,
    }


def plan_text(plan: RecipePlan) -> str:
    """The plan for a person."""
    attempt, costs, records = plan.attempt, plan.attempt.costs, plan.program.preprocessing.records
    chips = f"{plan.devices:,} x {plan.chip.name}" if plan.chip else f"{plan.devices:,} devices"
    lines = [
        f"{plan.recipe.model.name} on {plan.topology} ({chips}): {attempt.batch_size:,} {records} a step, "
        f"{attempt.batch_size / plan.devices:,.4g} a device",
        *_longest_lines(plan),
        state_text(plan.program),
    ]
    if costs is not None:
        lines += [*_memory_lines(plan), *_work_lines(plan), *_collective_lines(plan), *_prediction_lines(plan)]
    if plan.largest_batch is not None:
        lines.append(f"largest batch  {plan.largest_batch:,}, {plan.largest_batch / plan.devices:,.4g} a device")
    lines.append(f"compiled in    {attempt.seconds:,.0f} s")
    return "\n".join(lines)


def require_fit(plan: RecipePlan) -> None:
    """UserError where the step needs more memory than a device has."""
    attempt = plan.attempt
    if attempt.limit is None or attempt.fits:
        return
    needed = "more than" if attempt.needed is None else f"{attempt.needed / GIB:,.2f} GiB of"
    batch = f"train.batch_size={plan.largest_batch} fits; " if plan.largest_batch else ""
    records = plan.program.preprocessing.records
    raise UserError(
        f"{plan.recipe.model.name} does not fit on {plan.topology}: a step of {attempt.batch_size:,} {records} "
        f"needs {needed} {attempt.limit / GIB:,.2f} GiB a device; {batch}change {', '.join(_ways_to_fit(plan))}"
    )


def _ways_to_fit(plan: RecipePlan) -> list[str]:
    """Keys that would lower the memory."""
    model, mesh, accumulate = plan.recipe.model, plan.recipe.mesh, plan.recipe.train.accumulate
    ways = ["train.batch_size", f"train.accumulate={2 * accumulate}"]
    ways += ["model.remat"] if "remat" in model_entry(model.name).options and not model.remat else []
    return ways + (["mesh.fsdp"] if plan.devices > 1 and mesh.fsdp == 1 else [])


def _longest_lines(plan: RecipePlan) -> list[str]:
    """Which of the recipe's programs it is that was compiled, where there are several."""
    if plan.recipe.data.buckets == 1:
        return []
    return [
        f"steps          {plan.program.preprocessing.height:,}: all figures are of the bucket of the longest sequences"
    ]


def _memory_lines(plan: RecipePlan) -> list[str]:
    assert plan.attempt.costs is not None
    memory, limit = plan.attempt.costs.memory, plan.attempt.limit
    of_limit = "" if limit is None else f" of {limit / GIB:,.2f} GiB ({memory.peak / limit:.0%})"
    parts = {
        "arguments": memory.arguments,
        "outputs": memory.outputs,
        "donated": -memory.aliased,
        "temporary": memory.temporaries,
        "code": memory.code,
    }
    written = "  ".join(f"{name} {size / GIB:,.3f}" for name, size in parts.items())
    return [f"memory         {memory.peak / GIB:,.2f} GiB a device{of_limit}: {written}"]


def _work_lines(plan: RecipePlan) -> list[str]:
    assert plan.attempt.costs is not None
    costs, records = plan.attempt.costs, plan.attempt.batch_size / plan.devices
    flops, traffic = costs.flops / records / 1e9, costs.bytes_accessed / records / 1e6
    one = "an image" if plan.program.preprocessing.sequence is None else "a sequence"
    return [f"{one:<15}{flops:,.3g} GFLOP, {traffic:,.4g} MB of HBM traffic"]


def _collective_lines(plan: RecipePlan) -> list[str]:
    assert plan.attempt.costs is not None
    by_kind = plan.attempt.costs.by_kind()
    if not by_kind:
        return ["collectives    none"]
    kinds = (f"{count:,} {kind} ({size / 1e6:,.4g} MB)" for kind, (count, size) in by_kind.items())
    return [f"collectives    {', '.join(kinds)}"]


def _prediction_lines(plan: RecipePlan) -> list[str]:
    prediction = plan.prediction
    if prediction is None or prediction.step_seconds is None:
        return ["prediction     none: the limits of these devices are not documented"]
    times = (
        f"{name} {seconds * 1e3:,.4g} ms"
        for name in ("compute", "memory", "network")
        if (seconds := getattr(prediction, f"{name}_seconds")) is not None
    )
    lines = [
        f"bound          {prediction.bound}: {', '.join(times)}",
        f"{f'{plan.program.preprocessing.records}/s':<15}{_range(prediction.images_per_second, ',.0f')} "
        f"({_range(prediction.images_per_second_per_chip, ',.0f')} a chip)",
    ]
    return [*lines, f"MFU            {_range(prediction.mfu, '.1%')}"] if prediction.mfu else lines


def _range(values: Range | None, form: str) -> str:
    if values is None:
        return "not known"
    return " to ".join(format(value, form) for value in values)
