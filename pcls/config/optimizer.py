"""The recipe's optimizer and its schedule."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pcls.config.duration import Duration
from pcls.config.fields import Fraction, Length, Number, Pattern, Section, broken_rule, list_as_tuple


class ScaleRule(Section):
    """One rule of `optimizer.lr_scale` or `optimizer.decay_scale`: what it does to parameters whose path matches.

    Attributes:
      match: a regular expression searched for in paths such as `stages/0/1/conv1/kernel`.
      scale: the factor on their rate or on their weight decay.
    """

    match: Pattern
    scale: Annotated[Number, Field(ge=0)]


class FreezeRule(Section):
    """One rule of `optimizer.freeze`: how long what matches stays as it is.

    Attributes:
      match: a regular expression searched for in paths of parameters and running statistics, such as
        `stages/0/1/conv1/kernel` and `stages/0/1/bn1/mean`.
      until: where it starts to learn, counted from the start of the run; 0: at once; null: never.
    """

    match: Pattern
    until: Length | None = None


class LookaheadSection(Section):
    """Slow weights that the run is about, and that follow those of the optimizer. Source: Zhang et al. 2019.

    Attributes:
      every: batches after which the slow weights move towards the optimizer's, which then goes on from there; 0: there
        are none. What is evaluated between is the optimizer's, after the last step the slow ones.
      share: of the way that they move; null: 0.5.
      ramp: they first move all of the way, and less from round to round until `share` at the end of the run:
        1 - (1 - share) * progress**ramp; null: 0, always `share`. Source: Jordan 2024, with 3.
    """

    every: Annotated[int, Field(ge=0, le=2**24)] = 0
    share: Annotated[Number, Field(gt=0, le=1)] | None = None
    ramp: Annotated[Number, Field(ge=0, le=100)] | None = None

    @model_validator(mode="after")
    def _no_dead_options(self) -> LookaheadSection:
        for key in ("share", "ramp"):
            if getattr(self, key) is not None and not self.every:
                raise broken_rule(f"optimizer.lookahead.{key}", "has no effect without optimizer.lookahead.every")
        return self


class SparsitySection(Section):
    """Weights that become zero in training and stay so, in convolutions, dense layers and recurrent cells.

    Those with the smallest magnitudes of each kernel go. They are multiplied as any others: predictions take as long as
    before. What makes a network faster is `pcls compress --target flops=0.5`.

    Attributes:
      final: share of each kernel that is zero in the end; 0: none.
      pattern: `free`, or `two_of_four`: two of four inputs in a row, for each output, as some hardware multiplies
        faster; null: `free`.
      start: where it begins: with `two_of_four` all at once, else from no zeros to `final` along a cubic curve. Source:
        Zhu & Gupta 2017.
      end: where `final` is reached; null: three quarters of the run.
      every: batches between two looks at the magnitudes; null: 100.
    """

    final: Fraction = 0.0
    pattern: Literal["free", "two_of_four"] | None = None
    start: Length = Duration(0, "steps")
    end: Length | None = None
    every: Annotated[int, Field(ge=1, le=2**24)] | None = None

    @model_validator(mode="after")
    def _no_dead_options(self) -> SparsitySection:
        for key, info in SparsitySection.model_fields.items():
            if not self.final and getattr(self, key) != info.default:
                raise broken_rule(f"optimizer.sparsity.{key}", "has no effect without optimizer.sparsity.final")
        if self.pattern == "two_of_four":
            if self.final != 0.5:
                raise broken_rule("optimizer.sparsity.final", "is 0.5 with two_of_four; write that")
            for key in ("end", "every"):
                if getattr(self, key) is not None:
                    raise broken_rule(
                        f"optimizer.sparsity.{key}", "has no effect with two_of_four, which begins at once"
                    )
        return self


ScaleRules = Annotated[tuple[ScaleRule, ...], BeforeValidator(list_as_tuple)]

# What each optimizer and each schedule can be told beside what all share, with its default; None: it must be told.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9, "nesterov": True},
    "adam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "lamb": {"b1": 0.9, "b2": 0.999, "eps": 1e-6},
    "lars": {"momentum": 0.9, "trust_coefficient": 0.001, "eps": 1e-8},
    "lion": {"b1": 0.9, "b2": 0.99},
    "adafactor": {"decay_exponent": 0.8, "clipping_threshold": 1.0, "parameter_scale": True, "momentum": 0.0},
    # EfficientNet's; TensorFlow itself starts from eps 1e-10 and no momentum.
    "rmsprop": {"rms_decay": 0.9, "eps": 1e-3, "momentum": 0.9},
    "muon": {"momentum": 0.95, "nesterov": True, "b1": 0.9, "b2": 0.999, "eps": 1e-8},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {"warmup_start": 0.0},
    "linear": {"warmup_start": 0.0, "end_lr": 0.0},
    "cosine": {"warmup_start": 0.0, "end_lr": 0.0},
    "step": {"warmup_start": 0.0, "step_every": None, "step_factor": 0.1},
    "one_cycle": {"warmup_start": 0.04, "end_lr": 4e-6},
    "wsd": {"warmup_start": 0.0, "end_lr": 0.0, "cooldown": None, "cooldown_shape": "linear"},
}


class OptimizerSection(Section):
    """The update rule and its schedule.

    An argument that is left out (null) has the default of its optimizer in `OPTIMIZERS` or of its schedule in
    `SCHEDULES`; one that the optimizer or the schedule does not know is an error.

    Attributes:
      name: a key of `OPTIMIZERS`; what each does stands in `pcls.training.optimizers`.
      lr: the peak rate.
      lr_per_256: `lr` is meant for batches of 256 images, and multiplied by train.batch_size / 256.
      schedule: what follows the warm-up, up to the last step: `constant`, `linear` and `cosine` (to `end_lr`), `step`
        (times `step_factor` after every `step_every`), `one_cycle` (its rise is the warm-up, as a cosine; then as
        `cosine`), `wsd` (the peak, then down to `end_lr` within `cooldown`).
      warmup: length of the rise from `warmup_start` to the peak, linear but for `one_cycle`.
      warmup_start: the rate at step 0 as a share of the peak.
      end_lr: the rate at the end as a share of the peak.
      step_every: distance of the drops, counted from step 0.
      step_factor: what each drop leaves.
      cooldown: length of the last phase of `wsd`.
      cooldown_shape: of that phase: `linear`, or `1-sqrt` (1 less the root of its finished share).
      weight_decay: of parameters with two or more dimensions (kernels, not biases or scales). With `sgd`, `lars` and
        `rmsprop` it is L2, added to the gradient before momentum and scaling, as in torch; with the others decoupled.
      decay_scale: ordered rules, the first match gives the factor on `weight_decay`; no match: 1 for parameters with
        two or more dimensions, else 0.
      momentum: of `sgd`, `lars`, `rmsprop`, `adafactor` and `muon`; 0: none.
      nesterov: whether that momentum is Nesterov's.
      b1: share of the mean gradient that a step keeps (with `lion` in the update only).
      b2: share of the mean squared gradient that a step keeps; with `lion` that of the mean gradient.
      eps: added to the denominator, within the root with `rmsprop`.
      rms_decay: share of the mean squared gradient that a step of `rmsprop` keeps.
      decay_exponent: of `adafactor`: step t keeps 1 - t**-decay_exponent of the mean squared gradient.
      clipping_threshold: of `adafactor`: largest root mean square of a parameter's update.
      parameter_scale: of `adafactor`: updates are multiplied by the root mean square of their parameter.
      trust_coefficient: of `lars`.
      clip_norm: largest global norm of the gradient; 0: not clipped.
      adaptive_clip: largest norm of a unit's gradient as a share of the unit's norm, ahead of `clip_norm`; the head
        is left alone; 0: not clipped.
      lr_scale: ordered rules, the first match gives the factor on the rate, no match means 1.
      freeze: ordered rules, the first match says until when a parameter or a running statistic is left as it is; no
        match: it learns from the start. For what is frozen no gradient is computed and no optimizer state kept; a
        BatchNorm whose statistics are frozen normalises by them, as in prediction.
      lookahead: slow weights.
      sparsity: weights that become zero.
    """

    name: Literal["sgd", "adam", "adamw", "lamb", "lars", "lion", "adafactor", "rmsprop", "muon"] = "adam"
    lr: Annotated[Number, Field(gt=0)] = 1e-3
    lr_per_256: bool = False
    schedule: Literal["constant", "linear", "cosine", "step", "one_cycle", "wsd"] = "cosine"
    warmup: Length = Duration(0, "epochs")
    warmup_start: Annotated[Number, Field(ge=0, le=1)] | None = None
    end_lr: Annotated[Number, Field(ge=0, le=1)] | None = None
    step_every: Length | None = None
    step_factor: Annotated[Number, Field(gt=0, lt=1)] | None = None
    cooldown: Length | None = None
    cooldown_shape: Literal["linear", "1-sqrt"] | None = None
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    decay_scale: ScaleRules = ()
    momentum: Fraction | None = None
    nesterov: bool | None = None
    b1: Fraction | None = None
    b2: Fraction | None = None
    eps: Annotated[Number, Field(gt=0)] | None = None
    rms_decay: Fraction | None = None
    decay_exponent: Annotated[Number, Field(gt=0, le=1)] | None = None
    clipping_threshold: Annotated[Number, Field(ge=1)] | None = None
    parameter_scale: bool | None = None
    trust_coefficient: Annotated[Number, Field(gt=0)] | None = None
    clip_norm: Annotated[Number, Field(ge=0)] = 0.0
    adaptive_clip: Annotated[Number, Field(ge=0)] = 0.0
    lr_scale: ScaleRules = ()
    freeze: Annotated[tuple[FreezeRule, ...], BeforeValidator(list_as_tuple)] = ()
    lookahead: LookaheadSection = LookaheadSection()
    sparsity: SparsitySection = SparsitySection()

    @property
    def arguments(self) -> dict[str, Any]:
        """What the optimizer is told: what the recipe says, else its defaults."""
        return self._filled(OPTIMIZERS[self.name])

    @property
    def schedule_arguments(self) -> dict[str, Any]:
        """What the schedule is told: what the recipe says, else its defaults."""
        return self._filled(SCHEDULES[self.schedule])

    def _filled(self, defaults: dict[str, Any]) -> dict[str, Any]:
        values = dict(self)
        return {key: default if values[key] is None else values[key] for key, default in defaults.items()}

    @model_validator(mode="after")
    def _no_foreign_arguments(self) -> OptimizerSection:
        for choice, table in ((self.name, OPTIMIZERS), (self.schedule, SCHEDULES)):
            known = {key for defaults in table.values() for key in defaults}
            for key, value in self:
                if key in known - table[choice].keys() and value is not None:
                    theirs = ", ".join(table[choice])
                    raise broken_rule(f"optimizer.{key}", f"has no effect with {choice}; its arguments: {theirs}")
        return self

    @model_validator(mode="after")
    def _no_dead_options(self) -> OptimizerSection:
        if self.name == "adam" and self.weight_decay:
            raise broken_rule("optimizer.weight_decay", "has no effect with adam; write optimizer.name=adamw")
        if self.decay_scale and not self.weight_decay:
            raise broken_rule("optimizer.decay_scale", "has no effect without optimizer.weight_decay")
        if any(rule.scale == 0 for rule in self.lr_scale):
            raise broken_rule("optimizer.lr_scale", "has a scale of 0 (number); write what shall not learn into freeze")
        if self.nesterov and self.arguments["momentum"] == 0:
            raise broken_rule("optimizer.nesterov", "has no effect with optimizer.momentum=0")
        if self.warmup_start is not None and self.warmup.value == 0:
            raise broken_rule("optimizer.warmup_start", "has no effect without optimizer.warmup")
        return self

    @model_validator(mode="after")
    def _phases_have_lengths(self) -> OptimizerSection:
        if self.schedule == "one_cycle" and self.warmup.value == 0:
            raise broken_rule("optimizer.warmup", "is the rise of one_cycle and cannot be 0; write its length")
        for key, value in self.schedule_arguments.items():
            if value is None or (isinstance(value, Duration) and value.value == 0):
                message = f"is needed with {self.schedule}; write a length such as 10 epochs"
                raise broken_rule(f"optimizer.{key}", message)
        return self
