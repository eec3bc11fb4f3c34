"""The chooser: what to start from, and how, for somebody's data on some device in some time.

Each rule is a function of facts, so that it can be tested; each answer says why. docs/advise.md has them as a table.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from pcls.config import Recipe, with_overrides
from pcls.data.dataset import Dataset, data_settings, open_dataset
from pcls.data.doctor.look import open_picture
from pcls.data.sources.source import Unreadable, class_counts
from pcls.errors import UserError
from pcls.models.registry import model_entry
from pcls.planning.limits import Limits
from pcls.pretrained.catalogue import Weight, catalogue
from pcls.transfer.recipes import BATCH_SIZE, EPOCHS, MIN_STEPS

# Images whose size is looked at.
SAMPLE = 64
# Shorter side in pixels up to which images are drawn for networks of their own: public weights saw larger ones.
SMALL_SIDE = 48
# Above these the classes are called unbalanced, and few to a class.
UNBALANCED, FEW = 10.0, 50
# Parameters that few images a class may train, at most.
FEW_PARAMETERS = 30e6
# Share of the memory that a step may take; parameters with gradients and Adam's moments are 4 times 4 bytes each.
MEMORY_SHARE, BYTES_A_PARAMETER = 0.8, 16
SMALLEST_SIZE, SIZE_STEP = 96, 32
LARGER_BATCH, LARGER_FROM = 128, 10_000
SCRATCH_RECIPE, SCRATCH_EPOCHS = "mnist_cnn", 20
# Licences that forbid some uses.
RESTRICTED = ("nc", "noncommercial", "research")


@dataclass(frozen=True)
class Facts:
    """What the rules look at.

    Attributes:
      data: as the user named it.
      images: to train on.
      classes: how many.
      fewest, most: images of a class.
      side: median of the shorter sides in pixels, of a sample.
      channels: 1 or 3.
      sequences: whether they are no images.
    """

    data: str
    images: int
    classes: int
    fewest: int
    most: int
    side: int
    channels: int
    sequences: bool = False


@dataclass(frozen=True)
class Line:
    """One choice."""

    what: str
    value: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """How a weight would be fine-tuned, and what that costs.

    Attributes:
      weight: of the catalogue.
      size: of the images, in pixels.
      batch, steps: of the training.
      best, worst: seconds if computing and memory traffic overlap, and if they do not.
      memory: bytes of a step.
    """

    weight: Weight
    size: int
    batch: int
    steps: int
    best: float
    worst: float
    memory: int


@dataclass(frozen=True)
class Advice:
    """What is proposed.

    Attributes:
      lines: the choices.
      verb: `finetune` or `train`.
      source: the weights, or the recipe.
      overrides: of the recipe.
    """

    lines: tuple[Line, ...]
    verb: str
    source: str
    overrides: tuple[str, ...]

    def command(self, data: str) -> str:
        """That starts it."""
        where = [data, "--model", self.source] if self.verb == "finetune" else [self.source]
        return shlex.join(["pcls", self.verb, *where, *self.overrides])


def facts_of(data: str) -> Facts:
    """Opens a set and looks at a sample of its images.

    Raises:
      UserError: it cannot be opened.
    """
    dataset = open_dataset(with_overrides(Recipe(), data_settings(data)).data)
    counts = [count for count in class_counts(dataset.train).values() if count]
    return Facts(
        data=data,
        images=len(dataset.train),
        classes=len(dataset.class_names),
        fewest=min(counts),
        most=max(counts),
        side=0 if dataset.padded else _typical_side(dataset),
        channels=dataset.preprocessing.channels,
        sequences=bool(dataset.padded),
    )


def _typical_side(dataset: Dataset) -> int:
    if dataset.in_memory:
        return min(dataset.preprocessing.height, dataset.preprocessing.width)
    records = np.unique(np.linspace(0, len(dataset.train) - 1, SAMPLE).astype(int))
    stored = dataset.train.__getitems__(records.tolist())
    images = [one.image for one in stored if not isinstance(one.image, Unreadable)]
    sides = [side for image in images if (side := _shorter_side(image))]
    if not sides:
        raise UserError("none of a sample of the images can be read; look at them with: pcls data doctor")
    return int(median(sides))


def _shorter_side(image: bytes | np.ndarray) -> int:
    """In pixels; 0 where the picture is damaged."""
    try:
        return min(open_picture(image).size)
    # PIL's parsers raise whatever a damaged file makes them meet; the doctor names the file.
    except Exception:
        return 0


def advise(facts: Facts, limits: Limits, budget: float) -> Advice:
    """Proposes a run.

    Args:
      facts: of the data.
      limits: of one device.
      budget: seconds that training may take.

    Raises:
      UserError: nothing is proposed for such data.
    """
    if facts.sequences:
        raise UserError(
            "data of sequences: there are no public weights for them; train a network as docs/recurrent.md says"
        )
    seen = [_images(facts), _balance(facts), Line("device", limits.name, _figures(limits))]
    scratch = small_network(facts)
    chosen = _from_scratch(facts, scratch) if scratch else _fine_tuned(facts, limits, budget)
    return Advice((*seen, *chosen.lines), chosen.verb, chosen.source, chosen.overrides)


def _images(facts: Facts) -> Line:
    few = f"; fewer than {FEW} a class are few" if facts.images < FEW * facts.classes else ""
    reason = f"{facts.classes:,} classes, {facts.images / facts.classes:,.0f} images a class on average{few}"
    return Line("data", f"{facts.images:,} images, about {facts.side} pixels", reason)


def _balance(facts: Facts) -> Line:
    ratio = facts.most / facts.fewest
    if ratio < UNBALANCED:
        return Line("balance", f"1 to {ratio:.1f}", "balanced enough for plain training and top-1")
    return Line(
        "balance",
        f"1 to {ratio:.0f}",
        "unbalanced: top-1 hides the rare classes; read the recall of each in the report",
    )


def _figures(limits: Limits) -> str:
    figures = f"{limits.flops / 1e12:,.2f} TFLOP/s in {limits.precision}, {limits.bandwidth / 1e9:,.0f} GB/s"
    return f"{figures}, {limits.memory / 2**30:,.0f} GiB; {limits.source}"


def small_network(facts: Facts) -> str:
    """The network that small images are trained with from scratch; empty: the images are not small."""
    if facts.side > SMALL_SIDE:
        return ""
    return "cnn28" if facts.channels == 1 else "resnet18_cifar"


def _from_scratch(facts: Facts, model: str) -> Advice:
    size = model_entry(model).image_size
    steps = max(MIN_STEPS, math.ceil(SCRATCH_EPOCHS * facts.images / LARGER_BATCH))
    lines = (
        Line("start", "from scratch", f"{facts.side} pixels a side: public weights were trained on larger images"),
        Line("model", model, "for small grey images" if facts.channels == 1 else "a residual network for small images"),
        Line("image size", f"{size} x {size}", "that the network is made for"),
        Line("batch size", str(LARGER_BATCH), "small images are cheap"),
        Line("length", f"{steps:,} steps", f"{SCRATCH_EPOCHS} epochs, and {MIN_STEPS} steps at least"),
        Line("time", "not estimated", "stop it when the progress line's ETA is too long"),
    )
    where = [f"{key}={value}" for key, value in data_settings(facts.data).items()]
    overrides = [f"model.name={model}", f"data.image_size={size}", f"train.duration={steps} steps"]
    return Advice(lines, "train", SCRATCH_RECIPE, (*where, *overrides))


def _fine_tuned(facts: Facts, limits: Limits, budget: float) -> Advice:
    plan = chosen_plan(facts, limits, budget)
    lines = (
        Line("start", "fine-tune public weights", "photographs: features of ImageNet go with most of them"),
        Line("model", plan.weight.name, _weight_reason(plan, budget)),
        Line("image size", f"{plan.size} x {plan.size}", _size_reason(facts, plan)),
        Line(
            "batch size",
            str(plan.batch),
            f"{'many' if facts.images >= LARGER_FROM else 'few'} images; {plan.memory / 2**30:,.1f} GiB a step",
        ),
        Line("length", f"{plan.steps:,} steps", f"{EPOCHS} epochs, and {MIN_STEPS} steps at least"),
        Line(
            "time",
            f"{duration_text(plan.best)} to {duration_text(plan.worst)}",
            "by its limits, if computing and memory traffic overlap and if not; reading and compiling come on top",
        ),
    )
    overrides = (
        f"data.image_size={plan.size}",
        f"train.batch_size={plan.batch}",
        f"train.duration={plan.steps} steps",
        f"train.precision={limits.precision}",
    )
    return Advice(lines, "finetune", plan.weight.name, overrides)


def _weight_reason(plan: Plan, budget: float) -> str:
    weight = plan.weight
    facts = f"{weight.top1:.1f} % on ImageNet, {weight.parameters / 1e6:,.1f} M parameters, "
    facts += weight.licence or "licence not stated"
    if plan.worst > budget:
        return f"{facts}; nothing is faster"
    return f"{facts}; the most accurate of those that take {duration_text(budget)} at most and fit the memory"


def _size_reason(facts: Facts, plan: Plan) -> str:
    if plan.size == plan.weight.preprocessing.training.height:
        return "that the weights were trained at"
    return f"the images have about {facts.side} pixels: more would cost time and show nothing"


def chosen_plan(facts: Facts, limits: Limits, budget: float) -> Plan:
    """With the most accurate weight of free use that fits memory and budget; where none meets this, with the fastest.

    Raises:
      UserError: not one image fits the memory.
    """
    few = facts.images < FEW * facts.classes
    plans = [
        fine_tuning_plan(facts, weight, limits)
        for weight in catalogue().values()
        if weight.top1 and not is_restricted(weight) and not (few and weight.parameters > FEW_PARAMETERS)
    ]
    plans = [plan for plan in plans if plan.memory <= MEMORY_SHARE * limits.memory]
    if not plans:
        raise UserError(
            f"no public weights fit the {limits.memory / 2**30:,.1f} GiB of {limits.name}; name another device"
        )
    fitting = [plan for plan in plans if plan.worst <= budget]
    if not fitting:
        return min(plans, key=lambda plan: plan.worst)
    return max(fitting, key=lambda plan: (plan.weight.top1 or 0.0, -plan.weight.flops))


def is_restricted(weight: Weight) -> bool:
    """Whether its licence forbids some uses."""
    return any(word in weight.licence.lower().split("-") for word in RESTRICTED)


def fine_tuning_plan(facts: Facts, weight: Weight, limits: Limits) -> Plan:
    """Sizes by the rules, and a bound of the time by the limits of the device; it is no measurement."""
    trained = weight.preprocessing.training.height
    # The images' own size where it is smaller: a multiple of `SIZE_STEP`.
    size = max(SMALLEST_SIZE, min(trained, math.ceil(facts.side / SIZE_STEP) * SIZE_STEP))
    # The catalogue counts at the size of tests.
    area = (size / weight.preprocessing.height) ** 2
    activation_bytes = weight.activations * area * (4 if limits.precision == "float32" else 2)

    def step_bytes(batch: int) -> int:
        """Parameters with what an optimizer keeps of them, and two of each activation: itself and its gradient."""
        return BYTES_A_PARAMETER * weight.parameters + round(2 * batch * activation_bytes)

    batch = LARGER_BATCH if facts.images >= LARGER_FROM else BATCH_SIZE
    while batch > 1 and step_bytes(batch) > MEMORY_SHARE * limits.memory:
        batch //= 2
    steps = max(MIN_STEPS, math.ceil(EPOCHS * facts.images / batch))
    best, worst = limits.training_seconds(batch * steps, weight.flops * area, activation_bytes)
    return Plan(weight, size, batch, steps, best, worst, step_bytes(batch))


def duration_text(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def advice_text(advice: Advice, data: str) -> str:
    """A line a choice, then the command."""
    lines: Sequence[Line] = advice.lines
    width = max(len(line.what) for line in lines)
    value = max(len(line.value) for line in lines)
    rows = [f"{line.what:<{width}}  {line.value:<{value}}  {line.reason}" for line in lines]
    return "\n".join([*rows, "", advice.command(data)])
