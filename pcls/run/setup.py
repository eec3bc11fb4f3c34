"""A recipe put together with its data, all checked before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import jax
import numpy as np

from pcls.config import Recipe
from pcls.data.dataset import Dataset, open_dataset
from pcls.data.pipeline import Batch, Update, Workers, training_batches
from pcls.data.preprocessing import Preprocessing
from pcls.data.sources.source import label_counts
from pcls.errors import UserError
from pcls.models.registry import model_entry
from pcls.nn.module import HEAD_BIAS, Arrays
from pcls.parallel.mesh import replicated
from pcls.parallel.processes import everywhere
from pcls.training.losses import log_shares
from pcls.training.program import Program, make_program
from pcls.training.resident import Images
from pcls.training.state import TrainState


@dataclass(frozen=True)
class Setup(Program):
    """The program of a recipe, and the data that it runs on."""

    dataset: Dataset

    @property
    def random_crop(self) -> bool:
        """Whether files are cut anew each epoch."""
        return self.recipe.data.train_crop != "center" and self.preprocessing.sequence is None

    def batches(
        self, steps: Sequence[int], workers: Workers, warn: Callable[[str], None] | None = None
    ) -> AbstractContextManager[Iterator[Batch]]:
        """This process's rows of the training batches.

        Args:
          steps: at which the wanted updates begin, counted from 0.
          workers: who reads.
          warn: as `training_batches` takes it.
        """
        kinds = (Update(), *self.sizes.programs_from(steps[0] if len(steps) else 0))
        sizes = {self.plan.batch_size * update.batches for update in kinds}
        return training_batches(
            self.dataset.train,
            self.preprocessing.training,
            order=self.order,
            rows={size: self.rows(size) for size in sizes},
            random_crop=self.random_crop,
            steps=steps,
            workers=workers,
            # Sent to other processes: it must hold no more than it needs.
            update_at=self.sizes.update_at,
            warn=warn,
        )

    def deliverable(self, state: TrainState) -> tuple[Arrays, Arrays]:
        """The parameters and statistics of a state that are evaluated and delivered, adjusted as the recipe asks.

        The state itself stays as it was trained: a run that goes on from it is adjusted once, too.
        """
        params, stats = state.deliverable
        adjustment = self.recipe.imbalance.posthoc_adjustment
        if not adjustment:
            return params, stats
        lowered = (adjustment * log_shares(label_counts(self.dataset.train))).astype(np.float32)
        # Compiled with the numbers in it: the bias may lie on devices of other processes.
        return params | {HEAD_BIAS: jax.jit(lambda bias: bias - lowered)(params[HEAD_BIAS])}, stats


def prepare(recipe: Recipe, preprocessing: Preprocessing | None = None) -> Setup:
    """Opens the data and checks that recipe, data, model and devices fit together.

    Args:
      recipe: validated by itself.
      preprocessing: that of pretrained weights; None: worked out from the data.

    Raises:
      UserError: one line that says what does not fit.
    """
    return setup_of(recipe, open_data(recipe, preprocessing))


def setup_of(recipe: Recipe, dataset: Dataset) -> Setup:
    """Puts a recipe together with its data that are open already; UserError as `prepare` says."""
    program = make_program(
        recipe,
        dataset.preprocessing,
        classes=len(dataset.class_names),
        records=len(dataset.train),
        labels=dataset.train.labels if dataset.train.targets is None else dataset.train.targets,
        class_names=dataset.class_names,
        # One bucket is nothing but the longest length.
        buckets=dataset.train_buckets if len(dataset.padded) > 1 else (),
    )
    if recipe.imbalance.posthoc_adjustment and HEAD_BIAS not in program.model.params:
        raise UserError(
            f"imbalance.posthoc_adjustment moves the bias of the head, and that of {recipe.model.name} with "
            f"model.head={recipe.model.head} has none; write imbalance.logit_adjustment, which acts in training"
        )
    return Setup(**vars(program), dataset=dataset)


def open_data(recipe: Recipe, preprocessing: Preprocessing | None) -> Dataset:
    """The recipe's data, as `open_dataset` gives them to its model.

    A model that sees all sequences at one length sees them at that of its pretrained weights.

    Raises:
      UserError: sequences that are longer, and what `open_dataset` says.
    """
    dataset = open_dataset(recipe.data, preprocessing)
    if preprocessing is None or not dataset.padded or model_entry(recipe.model.name).lengths:
        return dataset
    steps, longest, model = preprocessing.height, dataset.preprocessing.height, recipe.model.name
    if longest > steps:
        raise UserError(
            f"the weights of {model} see sequences of {steps:,} steps, and the longest here has {longest:,}; leave it "
            "out by data.quarantine, or choose a model that takes lengths, such as lstm"
        )
    return dataset.padded_to(steps)


def images_on_devices(setup: Setup) -> Images:
    """The whole training set, on every device.

    Raises:
      UserError: files that are cut anew each epoch, images that cannot be decoded, or more than the memory holds.
    """
    dataset, size = setup.dataset, len(setup.dataset.train)
    if setup.random_crop and not dataset.in_memory:
        raise UserError(
            "data.on_device keeps each image once, and data.train_crop=random cuts it anew each epoch; "
            "write data.train_crop=center, or data.on_device=false"
        )
    image = setup.preprocessing.training
    needed = size * image.height * image.width * image.channels * (1 if image.sequence is None else 4)
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if memory and needed > memory // 2:
        raise UserError(
            f"data.on_device: the {size:,} {image.records} take {needed / 1e9:.1f} GB, more than half of a device's "
            f"{memory / 1e9:.1f} GB; write data.on_device=false"
        )
    records = dataset.train.read(np.arange(size), image, None)
    if not records.decoded.all():
        bad = int(np.flatnonzero(~records.decoded)[0])
        raise UserError(
            f"{dataset.train.name(bad)} {dataset.train.failure(bad, image)}; data.on_device needs all of them; "
            "mend or remove it"
        )
    return everywhere(Images(records.images, records.labels, records.lengths), replicated(setup.mesh))
