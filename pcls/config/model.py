"""The recipe's network, and what becomes of the weights that it starts from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pcls.config.fields import (
    Fraction,
    Pattern,
    Section,
    broken_rule,
    list_as_tuple,
)


class ModelSection(Section):
    """The network.

    Attributes:
      name: a name that `pcls models list` shows.
      init: a run, a bundle or public weights by name (`pcls models search`) that the training starts from; empty: from
        scratch.
      dropout: share of features dropped before the head in training; by recurrent classifiers between layers too.
      drop_path: stochastic depth: share of examples for which the last block's branch is dropped; it rises linearly
        from 0 at the first block.
      remat: what the backward pass keeps, for each stage of the network: `none` (all that it needs), `products`
        (outputs of convolutions and matrix products; the rest is computed again) or `inputs` (of each block only);
        empty: `none` for all.
      pool: over all positions, before the head: their mean (`avg`), their maximum (`max`), half of the sum of both
        (`avgmax`), or both side by side (`catavgmax`); null: as is customary for the model.
      head: what makes logits of features: `linear`, or `cosine` (30 times the cosine of the angle between the features
        and the kernel of each class: classes with few records get no shorter kernels; Cao et al. 2019).
      widths: channels of the two convolutions of `cnn28`, and units of its hidden layer, as in `[32, 64, 64]`; two
        numbers: no hidden layer; of the three groups of `speednet`, as in `[64, 256, 256]`; of residual networks those
        after each stage, as in `[64, 128, 256, 512]` (of bottlenecks first those after the stem); of EfficientNet and
        MobileNetV3 those after the stem, unless the first stage is added to them, after each stage, and before the
        head; and after these, if you like, those within each block, as `pcls compress` writes them; empty: the
        customary ones.
      read: what is a step where an image is read as a sequence: one of its `rows` or `columns`, of the `pixels` row by
        row, of the `patches` row by row, or of the pixels along a `hilbert` curve; null: as is customary for the model.
        Sequences are read by rows, which are their steps.
      patch: height and width of a patch in pixels, with `patches`; 0: 4.
      hidden: states of a recurrent layer in each direction; 0: as is customary for the model.
      layers: recurrent layers; 0: the same.
      bidirectional: recurrent layers run from both ends; null: the same.
      truncate: steps that gradients go back over in layers that run step by step; 0: all.
      chunk: of layers that run step by step, the backward pass keeps one state in so many steps and runs the steps
        between again: less memory for long sequences, about a third more time; 0: it keeps all.
      form: how recurrences run: linear ones `sequential` (step by step) or `parallel` (by associative scans), an LSTM
        `sequential` or by `cudnn` (NVIDIA GPUs, float32); null: as was measured to be faster on the device.
    """

    name: Annotated[str, Field(min_length=1)] = "cnn28"
    init: str = ""
    dropout: Fraction = 0.0
    drop_path: Fraction = 0.0
    remat: Annotated[tuple[Literal["none", "products", "inputs"], ...], BeforeValidator(list_as_tuple)] = ()
    pool: Literal["avg", "max", "avgmax", "catavgmax"] | None = None
    head: Literal["linear", "cosine"] = "linear"
    widths: Annotated[tuple[Annotated[int, Field(ge=1, le=2**16)], ...], BeforeValidator(list_as_tuple)] = ()
    read: Literal["rows", "columns", "pixels", "patches", "hilbert"] | None = None
    patch: Annotated[int, Field(ge=0, le=8192)] = 0
    hidden: Annotated[int, Field(ge=0, le=2**16)] = 0
    layers: Annotated[int, Field(ge=0, le=1024)] = 0
    bidirectional: bool | None = None
    truncate: Annotated[int, Field(ge=0, le=2**24)] = 0
    chunk: Annotated[int, Field(ge=0, le=2**24)] = 0
    form: Literal["sequential", "parallel", "cudnn"] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What is chosen of the network beside its name."""
        return self.model_dump(exclude={"name", "init"})

    @property
    def architecture(self) -> dict[str, Any]:
        """What of that decides which weights there are, where it is not as is customary for the model."""
        return self.model_dump(
            include={"pool", "head", "widths", "read", "patch", "hidden", "layers", "bidirectional"},
            exclude_defaults=True,
        )

    @model_validator(mode="after")
    def _patch_with_patches_only(self) -> ModelSection:
        if self.patch and self.read != "patches":
            raise broken_rule("model.patch", "has no effect without model.read=patches")
        return self


class RenameRule(Section):
    """One rule of `transfer.rename`.

    Attributes:
      match: a regular expression searched for in the paths of the weights.
      to: what stands in place of what it matches; `\\1` is its first group.
    """

    match: Pattern
    to: str


class TransferSection(Section):
    """What becomes of the weights of `model.init`.

    Attributes:
      rename: ordered rules, the first that matches a path of the weights renames it to a path of the model.
      skip: regular expressions searched for in paths: of the model, what is drawn anew; of the weights, what is not
        used.
      head: `auto` (kept where the classes have the same names, else drawn anew), `new` (drawn anew) or `probe` (fitted
        to the features that the weights give, as the best linear classifier of them, before the training starts).
    """

    rename: Annotated[tuple[RenameRule, ...], BeforeValidator(list_as_tuple)] = ()
    skip: Annotated[tuple[Pattern, ...], BeforeValidator(list_as_tuple)] = ()
    head: Literal["auto", "new", "probe"] = "auto"
