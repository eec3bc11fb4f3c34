"""What is compiled for a recipe: model, optimizer, mesh, and how their state lies on it. No array lives yet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pcls.config.schema import MeshSection, Recipe
from pcls.data.augment import PAIR
from pcls.data.buckets import Bucket
from pcls.data.order import BucketedOrder, Order
from pcls.data.pipeline import Batch, Places, Update, sized
from pcls.data.preprocessing import RGB, Preprocessing
from pcls.data.sources.targets import positives
from pcls.errors import UserError
from pcls.models.registry import define_model, model_entry
from pcls.nn.flops import analytic_flops
from pcls.nn.module import Arrays, ModelDef
from pcls.nn.platform import compiling_for
from pcls.nn.quantized import rounding
from pcls.nn.training import TrainingPass
from pcls.parallel.mesh import (
    BATCH_AXES,
    batch_sharding,
    local_rows,
    make_mesh,
    replicated,
    shard_count,
)
from pcls.parallel.processes import everywhere
from pcls.parallel.rules import PRESETS, Layout, Rule, matched_rules, spec
from pcls.parallel.shares import check_batch_size
from pcls.training.distillation import Teacher, Teaching, make_teaching
from pcls.training.freezing import Freezing, freezing
from pcls.training.loop import Plan
from pcls.training.losses import TrainingLoss, training_loss, training_loss_of_label_sets
from pcls.training.optimizers import make_optimizer
from pcls.training.plan import make_plan, training_order
from pcls.training.progressive import Phases, check_progressive, phases_of
from pcls.training.recalibration import make_statistics_step
from pcls.training.resident import resident_step, resident_steps
from pcls.training.schedules import learning_rate
from pcls.training.sizes import BucketSizes, Kind, Sizes, kinds_from
from pcls.training.sparsity import sparse
from pcls.training.state import TrainState, init_state, state_of
from pcls.training.step import Losses, Metrics, TrainStep, make_gradients, make_losses, make_train_step


@dataclass(frozen=True)
class Program:
    """A recipe for some devices and some kind of images.

    Attributes:
      recipe: resolved.
      preprocessing: sizes and statistics of the images.
      classes: of the training set.
      mesh: of the devices.
      layout: how the state is split over the mesh.
      rules: each parameter's path to its rule.
      model, schedule, optimizer: of the recipe.
      training: what BatchNorm normalises over.
      loss_of: what is trained on.
      order: of the training records.
      sizes: of the batches of each update.
      freezing: what learns when.
      plan: how long, how often what.
      teacher: whose answers are learned, too; None: nobody's, or nobody has looked yet.
    """

    recipe: Recipe
    preprocessing: Preprocessing
    classes: int
    mesh: Mesh
    layout: Layout
    rules: dict[str, Rule]
    model: ModelDef
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    training: TrainingPass
    loss_of: TrainingLoss
    order: Order | BucketedOrder
    sizes: Sizes
    freezing: Freezing
    plan: Plan
    teacher: Teacher | None = field(default=None, kw_only=True)

    @cached_property
    def given(self) -> tuple[Any, ...]:
        """What a compiled step takes after state and batch (or places and images): the teacher, on every device."""
        return () if self.teacher is None else (everywhere(self.teacher.given, replicated(self.mesh)),)

    @cached_property
    def batch_sharding(self) -> NamedSharding:
        """Of every array of a batch."""
        return batch_sharding(self.mesh)

    @cached_property
    def stacked_sharding(self) -> NamedSharding:
        """Of every array of several batches, stacked."""
        return NamedSharding(self.mesh, P(None, BATCH_AXES))

    @cached_property
    def state_shapes(self) -> TrainState:
        """Shape, type and sharding of every leaf of the state."""
        shapes = jax.eval_shape(self._init)
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._sharding(path, leaf.shape)),
            shapes,
        )

    @cached_property
    def state_shardings(self) -> Any:
        """The shardings of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.state_shapes)

    @cached_property
    def batch_shapes(self) -> Batch:
        """Shape, type and sharding of a training batch, of the largest that occurs."""
        return self._batch_shapes(self.sizes.largest)

    def _batch_shapes(self, update: Update) -> Batch:
        images, sequences = self.plan.batch_size * update.batches, self.preprocessing.sequence is not None
        image = sized(self.preprocessing.training, update).shape
        label_sets = self.recipe.data.holds_label_sets
        shapes = Batch(
            image=((images, *image), jnp.float32 if sequences else jnp.uint8),
            label=((images, self.classes), jnp.uint8) if label_sets else ((images,), jnp.int32),
            weight=((images,), jnp.float32),
            record=((images,), jnp.int32),
            epoch=((images,), jnp.int32),
            length=((images,), jnp.int32) if sequences else None,
        )
        return Batch(*(shape and jax.ShapeDtypeStruct(*shape, sharding=self.batch_sharding) for shape in shapes))

    @property
    def place_shapes(self) -> Places:
        """The same of a set that lives on the devices."""
        return Places(self.batch_shapes.record, self.batch_shapes.epoch)

    @cached_property
    def forward_flops(self) -> int:
        """FLOPs of one image through the model, as publications count them."""
        dtype = jnp.dtype(self.recipe.train.precision)
        image = jax.ShapeDtypeStruct((1, *self.batch_shapes.image.shape[1:]), dtype)
        return analytic_flops(self.model.apply, self.model.params, self.model.stats, image)

    def rows(self, batch_size: int) -> np.ndarray:
        """The rows of a global batch that this process feeds."""
        return local_rows(self.batch_sharding, batch_size)

    def initial_state(self, weights: tuple[Arrays, Arrays] | None = None) -> TrainState:
        """The state before the first step, every leaf made where it lives.

        Args:
          weights: parameters and statistics on the host to start from; None: drawn from the seed.
        """
        if weights is None:
            return jax.jit(self._init, out_shardings=self.state_shardings)()
        ema, seed = self.recipe.train.ema_decay > 0, self.recipe.train.seed
        start = partial(state_of, optimizer=self.optimizer, seed=seed, ema=ema)
        return jax.jit(start, out_shardings=self.state_shardings)(*weights)

    def update_shardings(self) -> dict[str, NamedSharding]:
        """Where each parameter's update is computed."""
        return {
            path: NamedSharding(self.mesh, spec(leaf.shape, self._update_over(self.rules[path].over), self.mesh.shape))
            for path, leaf in self.model.params.items()
        }

    @cached_property
    def platform(self) -> str:
        """Kind of the devices."""
        return self.mesh.devices.flat[0].platform

    def kinds_from(self, first: int) -> list[Kind]:
        """Of updates, from a step on, in the order of their first use."""
        return kinds_from(first, self.plan.steps, self.sizes, self.freezing)

    def kind_at(self, step: int) -> Kind:
        """Of the update that begins at a step."""
        return Kind(self.sizes.update_at(step), self.freezing.phase_at(step))

    @cached_property
    def step(self) -> TrainStep:
        """The training step, not compiled; where some learns later, with all that learns at the end."""
        return self.step_of(len(self.freezing.phases) - 1)

    def losses_of(self, phase: int) -> Losses:
        """What a step computes of a batch, not compiled, in a phase of the freezing."""
        return make_losses(
            self.model,
            self.recipe,
            self.preprocessing,
            loss_of=self.loss_of,
            training=self.training,
            frozen=self.freezing.frozen(phase),
            teaching=self._teaching,
        )

    @property
    def _teaching(self) -> Teaching | None:
        if self.teacher is None:
            return None
        return make_teaching(self.teacher, self.preprocessing.training, features=self.recipe.distill.features > 0)

    def gradients_of(self, phase: int) -> Callable[..., Any]:
        """The gradients of a step, not compiled."""
        return make_gradients(self.losses_of(phase), self.recipe)

    def step_of(self, phase: int) -> TrainStep:
        """The training step of a phase of the freezing, not compiled."""
        # First as the parameters lie: else the compiler carries the split of the update back into the layers, and each
        # BatchNorm gathers its numbers there.
        gradients = (self.state_shardings.params, self.update_shardings()) if self.layout.optimizer_over else ()
        step = make_train_step(
            self.gradients_of(phase),
            self.optimizer,
            self.recipe,
            gradient_shardings=gradients,
            frozen=self.freezing.frozen(phase),
        )

        def train_step(state: TrainState, batch: Batch, *given: Any) -> tuple[TrainState, Metrics]:
            with compiling_for(self.platform):
                return step(state, batch, *given)

        return train_step

    def train_step(self) -> Any:
        """The compiled training step: state donated and staying where it is, metrics on every device."""
        return self._compiled(self.step, self.batch_sharding)

    def train_step_of(self, kind: Kind) -> Any:
        """The same for updates of one kind, compiled now."""
        step = self._compiled(self.step_of(kind.phase), self.batch_sharding)
        return step.lower(self.state_shapes, self._batch_shapes(kind.update), *self.given).compile()

    def train_steps(self) -> Any:
        """The same for several steps in one program; takes their batches stacked."""

        def train_steps(state: TrainState, batches: Batch, *given: Any) -> tuple[TrainState, Metrics]:
            return jax.lax.scan(lambda state, batch: self.step(state, batch, *given), state, batches)

        return self._compiled(train_steps, self.stacked_sharding)

    def resident_step(self) -> Any:
        """The same for images on the devices: `(state, places, images)`."""
        return self._compiled(resident_step(self.step), self.batch_sharding, replicated(self.mesh))

    def resident_step_of(self, kind: Kind) -> Any:
        """The same for updates of one kind."""
        return self._compiled(resident_step(self.step_of(kind.phase)), self.batch_sharding, replicated(self.mesh))

    def resident_steps(self) -> Any:
        """The same for several steps in one program; takes their places stacked."""
        return self._compiled(resident_steps(self.step), self.stacked_sharding, replicated(self.mesh))

    def statistics_step(self) -> Any:
        """The compiled pass that takes BatchNorm's statistics and weighs them: `(params, stats, key, batch)`."""
        frozen = self.freezing.frozen(len(self.freezing.phases) - 1)
        step = make_statistics_step(self.model, self.recipe, self.preprocessing, self.training, frozen)
        return jax.jit(
            step,
            in_shardings=(
                self.state_shardings.params,
                self.state_shardings.stats,
                replicated(self.mesh),
                self.batch_sharding,
            ),
            out_shardings=(self.state_shardings.stats, replicated(self.mesh)),
        )

    def _compiled(self, step: Callable[..., Any], *inputs: NamedSharding) -> Any:
        return jax.jit(
            step,
            in_shardings=(self.state_shardings, *inputs, *(replicated(self.mesh) for _ in self.given)),
            out_shardings=(self.state_shardings, replicated(self.mesh)),
            donate_argnums=0,
            compiler_options=_compiler_options(self.platform, self.model),
        )

    def _init(self) -> TrainState:
        ema = self.recipe.train.ema_decay > 0
        return init_state(self.model, self.optimizer, self.recipe.train.seed, ema=ema)

    def _sharding(self, path: tuple[Any, ...], shape: tuple[int, ...]) -> NamedSharding:
        """Of a leaf of the state: that of the parameter whose path its own ends in, and the optimizer's share.

        All else is whole. Averaged statistics too: if they were split, the layers would compute theirs split, and
        gather them.
        """
        parameter = getattr(path[-1], "key", None)
        if parameter not in self.rules:
            return replicated(self.mesh)
        over = self.rules[parameter].over
        over = over if path[0].name == "params" else self._update_over(over)
        return NamedSharding(self.mesh, spec(shape, over, self.mesh.shape))

    def _update_over(self, over: tuple[str, ...]) -> tuple[str, ...]:
        return (*over, *(axis for axis in self.layout.optimizer_over if axis not in over))


def make_program(
    recipe: Recipe,
    preprocessing: Preprocessing,
    *,
    classes: int,
    records: int,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    buckets: Sequence[Bucket] = (),
    devices: Sequence[jax.Device] | None = None,
) -> Program:
    """Checks that recipe, images and devices fit together.

    Args:
      recipe: validated by itself.
      preprocessing: sizes and statistics of the images.
      classes, records: of the training set.
      labels: [records] of it, or [records, classes] of 0 and 1 where records carry several; None: nobody has read
        them, the classes are taken for balanced.
      class_names: in label order; None: nobody knows them, given weights of classes are all 1.
      buckets: its sequences by padded length; empty: pictures, or sequences that are all padded to the longest.
      devices: to compile for; None: all of all processes.

    Raises:
      UserError: one line that says what does not fit.
    """
    mesh = make_mesh(recipe.mesh.data, recipe.mesh.fsdp, recipe.mesh.model, devices)
    check_batch_size("train.batch_size", recipe.train.batch_size, shard_count(mesh))
    check_batch_size("evaluate.batch_size", recipe.evaluation_batch_size, shard_count(mesh))
    trained = preprocessing.training
    if preprocessing.sequence is not None:
        check_sequences(recipe, preprocessing)
    model = define_model(
        recipe.model.name,
        height=trained.height,
        width=trained.width,
        channels=trained.channels,
        classes=classes,
        precision=recipe.train.precision,
        **recipe.model.options,
    )
    model = replace(model, learning=rounding(recipe.train.quantize))
    order = training_order(recipe, records, buckets, labels)
    check_progressive(recipe.data, recipe.model.name, order.epoch_steps)
    training = normalisation(recipe, shard_count(mesh), normalises=bool(model.stats))
    check_augmentation(recipe, shard_count(mesh), preprocessing.channels)
    layout = chosen_layout(recipe.mesh)
    image_bytes = math.prod(trained.shape) * (1 if preprocessing.sequence is None else 4)
    plan = make_plan(recipe, order, image_bytes=image_bytes, platform=mesh.devices.flat[0].platform)
    sizes = _sizes(recipe, trained, order, plan)
    learns = freezing(
        recipe.optimizer.freeze, model.params, model.stats, epoch_steps=plan.epoch_steps, steps=plan.steps
    )
    # What is dispatched together is one program.
    at_once = plan.at_once if len(learns.phases) == 1 else 1
    plan = replace(plan, at_once=at_once, batches_at=lambda step: sizes.update_at(step).batches)
    schedule = learning_rate(
        recipe.optimizer, steps=plan.steps, epoch_steps=plan.epoch_steps, batch_size=plan.batch_size
    )
    return Program(
        recipe=recipe,
        preprocessing=preprocessing,
        classes=classes,
        mesh=mesh,
        layout=layout,
        rules=matched_rules(layout.rules, model.params),
        model=model,
        schedule=schedule,
        optimizer=_optimizer(recipe, schedule, model, learns, plan),
        training=training,
        loss_of=_training_loss(recipe, classes, labels, order.epoch_steps, class_names),
        order=order,
        sizes=sizes,
        freezing=learns,
        plan=plan,
    )


def _optimizer(
    recipe: Recipe, schedule: optax.Schedule, model: ModelDef, learns: Freezing, plan: Plan
) -> optax.GradientTransformation:
    section = recipe.optimizer
    optimizer = make_optimizer(section, schedule, model.params, learns.starts, plan.steps)
    if not section.sparsity.final:
        return optimizer
    return sparse(
        optimizer,
        section.sparsity,
        model.params,
        learns.starts,
        epoch_steps=plan.epoch_steps,
        steps=plan.steps,
    )


def _training_loss(
    recipe: Recipe, classes: int, labels: np.ndarray | None, epoch_steps: float, class_names: Sequence[str] | None
) -> TrainingLoss:
    train, imbalance = recipe.train, recipe.imbalance
    weighted_from = imbalance.class_weights_from.steps(epoch_steps)
    if recipe.data.holds_label_sets:
        if train.loss == "softmax":
            raise UserError(
                "train.loss is softmax, which has one right class, and data.labels is several; write "
                "train.loss=sigmoid or train.loss=asymmetric"
            )
        # Half of two records: as balanced as what nobody has read is taken for.
        counts, records = (np.ones(classes), 2) if labels is None else (positives(labels), len(labels))
        return training_loss_of_label_sets(train, imbalance, counts, records, weighted_from, class_names)
    counts = np.ones(classes) if labels is None else np.bincount(labels, minlength=classes)
    return training_loss(train, imbalance, counts, weighted_from, class_names)


def check_sequences(recipe: Recipe, preprocessing: Preprocessing) -> None:
    """UserError where the model cannot take the sequences as the recipe gives them."""
    entry, steps, features = model_entry(recipe.model.name), preprocessing.height, preprocessing.width
    if min(steps, features) < entry.min_size:
        raise UserError(
            f"{recipe.model.name} sees sequences as images, steps x features, of {entry.min_size} x {entry.min_size} "
            f"or more, and these are {steps} x {features}; choose a model that takes lengths, such as lstm"
        )
    if recipe.data.buckets > 1 and not entry.lengths:
        raise UserError(
            f"data.buckets is {recipe.data.buckets}, and {recipe.model.name} sees pictures of one size: it takes no "
            "lengths; leave it out, or choose a model that does, such as lstm"
        )
    if recipe.model.read not in (None, "rows"):
        raise UserError(
            f"model.read is {recipe.model.read!r}, and sequences are read by rows, their steps; leave it out"
        )


def _sizes(recipe: Recipe, preprocessing: Preprocessing, order: Order | BucketedOrder, plan: Plan) -> Sizes:
    if isinstance(order, BucketedOrder):
        return BucketSizes(order, preprocessing.width, plan.steps)
    phases = phases_of(recipe.data, plan.steps, plan.epoch_steps, (preprocessing.height, preprocessing.width))
    _check_growing_batches(recipe, phases)
    return phases


def _check_growing_batches(recipe: Recipe, phases: Phases) -> None:
    if recipe.batch_norm.over == "per_shard" and any(phase.batches > 1 for phase in phases.phases):
        raise UserError(
            "data.progressive: batches has no meaning with batch_norm.over=per_shard, whose groups would grow with it; "
            "write batch_norm.over=groups"
        )


def chosen_layout(section: MeshSection) -> Layout:
    """The layout that a recipe names."""
    if section.rules:
        rules = tuple(Rule(rule.match, rule.over) for rule in section.rules)
        return Layout(rules, BATCH_AXES if section.sharding == "zero1" else ())
    if section.sharding == "auto":
        return PRESETS["fsdp" if section.fsdp > 1 else "zero1"]
    return PRESETS[section.sharding]


def normalisation(recipe: Recipe, shards: int, *, normalises: bool) -> TrainingPass:
    """What BatchNorm normalises over.

    Args:
      recipe: with a batch that divides by the shards.
      shards: parts that a batch is split into.
      normalises: whether the model has such layers.

    Raises:
      UserError: micro-batches or groups do not divide what lies on one device.
    """
    section, accumulate = recipe.batch_norm, recipe.train.accumulate
    if not normalises and (section.over != "global" or section.recalibrate.value):
        key = "recalibrate" if section.recalibrate.value else "over"
        raise UserError(f"batch_norm.{key} has no effect: {recipe.model.name} has no BatchNorm; leave it out")
    rows = recipe.train.batch_size // shards
    if rows % accumulate:
        raise UserError(
            f"train.accumulate is {accumulate} and does not divide the {rows} records of each of {shards} devices; "
            f"choose a divisor of {rows}, or another train.batch_size"
        )
    rows //= accumulate
    if section.over == "groups" and rows % section.group_size:
        raise UserError(
            f"batch_norm.group_size is {section.group_size} and does not divide the {rows} records of a device at a "
            f"time (train.batch_size {recipe.train.batch_size} / {shards} devices / train.accumulate {accumulate}); "
            f"choose a divisor of {rows}"
        )
    group_size = {"global": None, "groups": section.group_size, "per_shard": rows}[section.over]
    return TrainingPass(group_size=group_size, group_a_device=group_size in (None, rows))


def check_augmentation(recipe: Recipe, shards: int, channels: int) -> None:
    """Raises UserError where pairs of neighbours do not divide what lies on a device, or colours are changed of none.

    Args:
      recipe: with a batch and micro-batches that divide by the shards.
      shards: parts that a batch is split into.
      channels: of the images.
    """
    section, accumulate = recipe.augment, recipe.train.accumulate
    rows = recipe.train.batch_size // shards // accumulate
    if section.mixes and rows % PAIR:
        raise UserError(
            f"augment.{'mixup' if section.mixup else 'cutmix'} mixes pairs of images, and a device has {rows} at once "
            f"(train.batch_size {recipe.train.batch_size} / {shards} devices / train.accumulate {accumulate}); choose "
            "numbers that leave an even one"
        )
    colours = {"saturation": section.saturation, "hue": section.hue, "greyscale": section.greyscale}
    if channels != RGB and any(colours.values()):
        key = next(key for key, value in colours.items() if value)
        found, way = ("one channel", ", or write data.channels=3") if channels == 1 else (f"{channels} channels", "")
        raise UserError(f"augment.{key} has no effect on images of {found}; leave it out{way}")


def _compiler_options(platform: str, model: ModelDef) -> dict[str, Any] | None:
    # jax 0.10 gives a CPU's convolutions without padding to YNN: a step of cnn28 takes 34 ms instead of 21. Naming the
    # matrix products alone leaves them to Eigen, as jax 0.12 does by itself. It takes 12 % more of an LSTM, 18 % of a
    # ResNet-18 and three times as long for a ConvNeXt, whose padded convolutions are left alone anyway.
    convolves = any(len(param.shape) == 4 for param in model.params.values())
    others = any(path.endswith("/recurrent") or path.startswith("stages/") for path in model.params)
    slow = platform == "cpu" and jax.__version_info__ < (0, 11) and convolves and not others
    ynn = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
    return ynn if slow else None
