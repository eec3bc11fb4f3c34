"""A run's model and data, what is made of the model, and what is measured of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import jax.numpy as jnp

from pcls.compression.latency import latencies
from pcls.compression.measured import Variant, points_lost
from pcls.compression.narrow import Goal, file_bytes, narrowed
from pcls.compression.prune import Score
from pcls.compression.quantize import input_ranges, with_integers
from pcls.compression.recovery import Recovery
from pcls.compression.sensitivity import Sensitivity, sensitivities
from pcls.data.pipeline import Batch, evaluation_batches
from pcls.data.sources.source import Source
from pcls.data.workers import usable_cores
from pcls.evaluation.metrics import Evaluation
from pcls.nn.flops import image_costs
from pcls.nn.quantized import Bits, Quantization
from pcls.parallel.mesh import local_rows, shard_count
from pcls.parallel.processes import place
from pcls.pretrained.bundle import Bundle
from pcls.run.calibrate import some_records
from pcls.run.evaluate import Evaluator
from pcls.run.setup import Setup

# Images of a calibration batch, about.
BATCH = 64
Say = Callable[[str], None]


class Work:
    """A run's model and data, and what is measured of them."""

    def __init__(self, bundle: Bundle, setup: Setup, records: int, say: Say):
        self._bundle, self._setup, self._records, self._say = bundle, setup, records, say
        self._params, self._stats = dict(bundle.params), dict(bundle.stats)

    def ranges(self) -> dict[str, float]:
        """Of the inputs of each layer, from training records without augmentation."""
        dataset = self._setup.dataset
        source = some_records(replace(dataset, evaluation=dataset.train), self._records).evaluation
        self._say(f"ranges of inputs from {len(source):,} training records")
        arguments = self._params, self._stats, self._batches(source), dataset.preprocessing, self._bundle.precision
        return input_ranges(self._bundle.definition(), *arguments)

    def quantized(self, bits: Bits, *, weights_only: bool) -> tuple[list[Variant], Bundle]:
        """Measures the model as it is, with integer weights, and with integers for inputs too; the last of these."""
        bundles = [self._bundle, with_integers(self._bundle, bits, {})]
        if not weights_only:
            bundles.append(with_integers(self._bundle, bits, self.ranges()))
        return self._measured({_name(bundle): bundle for bundle in bundles}, {}), bundles[-1]

    def narrowed(
        self, goal: Goal, recovery: Recovery, steps: int, score: Score, max_loss: float
    ) -> tuple[list[Variant], Bundle]:
        """Measures the model as it is, after each step of pruning, and with integers where the goal has some.

        The last variant is the one that the goal was met by, if any was, and the bundle is its. No more steps are taken
        when more than `max_loss` points of accuracy are lost.
        """
        name = _name(self._bundle)
        first = self._evaluated(name, self._bundle)

        def allowed(evaluation: Evaluation) -> bool:
            return points_lost(first, evaluation) <= max_loss

        bundles, evaluations, last = {name: self._bundle}, {name: first}, first
        if goal.share < 1:
            for share, bundle, last in narrowed(self._bundle, goal, recovery, steps, score, allowed, self._say):
                name = f"{share:.3g} of FLOPs"
                bundles[name], evaluations[name] = bundle, last
        if goal.bits is not None and allowed(last):
            whole = bundles[name]
            small = with_integers(whole, goal.bits, {})
            bundles[f"{name}, {small.quantization}" if goal.share < 1 else _name(small)] = small
        variants = self._measured(bundles, evaluations)
        met = [goal.met is not None and goal.met(one) and allowed(one.evaluation) for one in variants]
        # As little as will do: a step before the last may have been enough.
        place = met.index(True, 1) if any(met[1:]) else len(variants) - 1
        return variants[: place + 1], list(bundles.values())[place]

    def _measured(self, bundles: Mapping[str, Bundle], known: Mapping[str, Evaluation]) -> list[Variant]:
        """Accuracy on all held-out records where it is not known, size of the file, FLOPs, latencies in turns."""
        evaluations = {name: known.get(name) or self._evaluated(name, bundle) for name, bundle in bundles.items()}
        self._say("latencies, in turns")
        shape, precision = self._bundle.preprocessing.shape, self._bundle.precision
        times = latencies([(*bundle.runnable(), dict(bundle.stats)) for bundle in bundles.values()], shape, precision)
        return [
            Variant(
                name=name,
                evaluation=evaluations[name],
                file_bytes=file_bytes(bundle),
                parameters=sum(array.size for array in bundle.params.values()),
                flops=image_costs(bundle.definition(), shape, jnp.dtype("float32"))[0],
                latencies=tuple(own),
            )
            for (name, bundle), own in zip(bundles.items(), times, strict=True)
        ]

    def _evaluated(self, name: str, bundle: Bundle) -> Evaluation:
        self._say(f"{name}: {len(self._setup.dataset.evaluation):,} held-out records")
        model, params = bundle.runnable()
        return Evaluator(replace(self._setup, model=model))(params, dict(bundle.stats))[0]

    def sensitivities(self, quantization: Quantization) -> list[Sensitivity]:
        """Of each kernel, on some held-out records."""
        batches = self._batches(some_records(self._setup.dataset, self._records).evaluation)
        return sensitivities(
            self._bundle.definition(),
            self._params,
            self._stats,
            quantization,
            batches,
            self._setup.dataset.preprocessing,
            self._bundle.precision,
            self._say,
        )

    def _batches(self, source: Source) -> list[Batch]:
        setup, shards = self._setup, shard_count(self._setup.mesh)
        size = -(-min(BATCH, len(source)) // shards) * shards
        with evaluation_batches(
            source,
            setup.dataset.preprocessing,
            batch_size=size,
            rows=local_rows(setup.batch_sharding, size),
            threads=0 if setup.dataset.in_memory else setup.recipe.data.workers or usable_cores(),
        ) as batches:
            return [place(batch, setup.batch_sharding, size) for batch in batches]


def _name(bundle: Bundle) -> str:
    return str(bundle.quantization or bundle.precision)
