"""Every model by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np
from flax import nnx

from pcls.errors import UserError
from pcls.models.classic import Cnn28, irnn28, rnn28
from pcls.models.convnext import CONVNEXTS
from pcls.models.crnn import Crnn
from pcls.models.efficientnet import (
    efficientnet_b0,
    efficientnet_v2_s,
    efficientnetv2_rw_s,
    efficientnetv2_s,
    tf_efficientnet_b0,
    tf_efficientnetv2_s,
)
from pcls.models.inverted import plan_of
from pcls.models.mobilenet import (
    mobilenet_v3_large,
    mobilenet_v3_small,
    mobilenetv3_large_100,
    mobilenetv3_small_100,
    tf_mobilenetv3_large_100,
    tf_mobilenetv3_small_100,
)
from pcls.models.reading import Order
from pcls.models.resnet import (
    DEEP_RESNETS,
    RESNETS,
    inner_widths,
    resnet18_cifar,
    resnext50_32x4d,
    stage_widths,
    wide_resnet50_2,
)
from pcls.models.rglru2d import rglru2d_s, rglru2d_tiny
from pcls.models.sequence import LinearSequenceClassifier, SequenceClassifier
from pcls.models.sequencer import sequencer2d_l, sequencer2d_m, sequencer2d_s
from pcls.models.speednet import WIDTHS, SpeedNet, whitening_stem
from pcls.nn.cosine import CosineHead
from pcls.nn.module import ModelDef
from pcls.nn.recurrent.linear import Form
from pcls.nn.recurrent.linear_layers import LRU, RGLRU, MinGRU, MinLSTM


class Widths(NamedTuple):
    """What the option `widths` of a model means.

    Attributes:
      of: the layers, in words.
      counts: how many may be written.
      usual: the customary ones.
    """

    of: str
    counts: tuple[int, ...]
    usual: tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """A model's facts.

    Attributes:
      description: one line.
      build: takes channels, classes, dtype and rngs, height and width where `fixed_size` says so, and its options.
      image_size: the customary height and width in pixels.
      min_size: the smallest height and width in pixels.
      channels, classes: the customary ones, for which `pcls models list` counts parameters.
      fixed_size: weights depend on the image size.
      options: those of `define_model` that it has.
      stages: that `remat` speaks of.
      reads, forms: what `read` and `form` may be.
      lengths: it takes sequences of several lengths, as images whose rows are steps.
      widths: what `widths` speaks of, how many there may be, and the customary ones.
      from_images: parameters that are computed from the training images before the first step: takes some thousand
        normalised images [n, height, width, channels] float32 and gives path to array; None: there are none.
    """

    description: str
    build: Callable[..., nnx.Module]
    image_size: int
    min_size: int
    channels: int
    classes: int
    fixed_size: bool = False
    options: frozenset[str] = frozenset()
    stages: int = 0
    reads: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    lengths: bool = False
    widths: Widths | None = None
    from_images: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None


_classic = partial(Entry, image_size=28, channels=1, classes=10, fixed_size=True)
_STAGED = frozenset(("dropout", "drop_path", "remat"))
_staged = partial(Entry, channels=3, options=_STAGED, stages=4)
_imagenet = partial(_staged, image_size=224, min_size=32, classes=1000)
_cnn = partial(_imagenet, options=_STAGED | {"pool"})
_sequencer = partial(_cnn, min_size=14)
_SEQUENCE = frozenset(("read", "patch", "hidden", "layers", "bidirectional", "dropout"))
_sequence = partial(_classic, min_size=1, options=_SEQUENCE, reads=get_args(Order), lengths=True)
_stepwise = partial(_sequence, options=_SEQUENCE | {"truncate", "chunk"})
_linear = partial(_sequence, options=_SEQUENCE | {"form"}, forms=get_args(Form))


def _family(description: str, builds: Mapping[str, Callable[..., nnx.Module]], **facts: Any) -> dict[str, Entry]:
    """Models that one line describes."""
    return {name: _cnn(description, build, **facts) for name, build in builds.items()}


def _residual(entry: Entry) -> Entry:
    """The same with the option `widths`."""
    # Of a `partial(ResNet, block, depths)`.
    build: Any = entry.build
    block, depths = build.args
    usual, inner = stage_widths(block), inner_widths(block)
    stem = "" if len(usual) == len(depths) else "its stem, "
    of = f"{stem}{len(depths)} stages, and, if you like, {inner * sum(depths)} convolutions within its blocks"
    widths = Widths(of, (len(usual), len(usual) + inner * sum(depths)), usual)
    return replace(entry, options=entry.options | {"widths"}, widths=widths)


def _residuals(description: str, builds: Mapping[str, Callable[..., nnx.Module]]) -> dict[str, Entry]:
    """Residual networks that one line describes."""
    return {name: _residual(entry) for name, entry in _family(description, builds).items()}


def _inverted(description: str, build: Callable[..., nnx.Module], **facts: Any) -> Entry:
    """A network of inverted residual blocks, which has the option `widths`."""
    entry = _cnn(description, build, **facts)
    # Of a `partial` whose arguments are those of `plan_of`.
    named: Any = build
    plan = plan_of(*named.args)
    usual, within = plan.streams, len(plan.within)
    of = f"{len(usual)} widths from its stem to the layer before its head, and, if you like, {within} within its blocks"
    widths = Widths(of, (len(usual), len(usual) + within), usual)
    return replace(entry, options=entry.options | {"widths"}, widths=widths)


MODELS: dict[str, Entry] = {
    "cnn28": _classic(
        "two convolutions and two dense layers",
        Cnn28,
        min_size=10,
        options=frozenset(("dropout", "widths")),
        widths=Widths("two convolutions and one hidden layer or none", (2, 3), (32, 64, 64)),
    ),
    "rnn28": _classic("simple recurrent network (tanh) over the rows of the image", rnn28, min_size=2),
    "irnn28": _classic("the same with ReLU and an identity start (Le et al. 2015)", irnn28, min_size=2),
    **_residuals("residual network (He et al. 2015)", RESNETS),
    **_residuals("the same, a deep stem, means in its shortcuts (He et al. 2019)", DEEP_RESNETS),
    "resnext50_32x4d": _cnn("residual network, 32 groups of channels (Xie et al. 2017)", resnext50_32x4d),
    "wide_resnet50_2": _residual(
        _cnn("residual network, twice the inner width (Zagoruyko & Komodakis 2016)", wide_resnet50_2)
    ),
    "resnet18_cifar": _residual(
        _staged("residual network with a stem for small images", resnet18_cifar, image_size=32, min_size=8, classes=10)
    ),
    "speednet": Entry(
        "small images in seconds on a GPU: whitened patches, identity starts (Jordan 2024)",
        SpeedNet,
        image_size=32,
        min_size=9,
        channels=3,
        classes=10,
        options=frozenset(("widths",)),
        widths=Widths("three groups of convolutions", (3,), WIDTHS),
        from_images=whitening_stem,
    ),
    **_family("ConvNeXt: depthwise 7 x 7, layer normalisation (Liu et al. 2022)", CONVNEXTS),
    "efficientnet_b0": _inverted(
        "EfficientNet-B0: inverted residuals, squeeze-excite (Tan & Le 2019)", efficientnet_b0, stages=7
    ),
    "tf_efficientnet_b0": _inverted("the same for weights from TensorFlow", tf_efficientnet_b0, stages=7),
    "efficientnetv2_s": _inverted(
        "EfficientNetV2-S: fused blocks first (Tan & Le 2021)", efficientnetv2_s, image_size=288, stages=6
    ),
    "tf_efficientnetv2_s": _inverted(
        "the same for weights from TensorFlow", tf_efficientnetv2_s, image_size=300, stages=6
    ),
    "efficientnetv2_rw_s": _inverted(
        "EfficientNetV2-S as timm made it before its code was public", efficientnetv2_rw_s, image_size=288, stages=6
    ),
    "efficientnet_v2_s": _inverted(
        "EfficientNetV2-S as torchvision has it", efficientnet_v2_s, image_size=384, stages=6
    ),
    "mobilenetv3_large_100": _inverted("MobileNetV3-Large (Howard et al. 2019)", mobilenetv3_large_100, stages=7),
    "mobilenetv3_small_100": _inverted("MobileNetV3-Small", mobilenetv3_small_100, stages=6),
    "tf_mobilenetv3_large_100": _inverted(
        "MobileNetV3-Large for weights from TensorFlow", tf_mobilenetv3_large_100, stages=7
    ),
    "tf_mobilenetv3_small_100": _inverted(
        "MobileNetV3-Small for weights from TensorFlow", tf_mobilenetv3_small_100, stages=6
    ),
    "mobilenet_v3_large": _inverted("MobileNetV3-Large as torchvision has it", mobilenet_v3_large, stages=7),
    "mobilenet_v3_small": _inverted("MobileNetV3-Small as torchvision has it", mobilenet_v3_small, stages=6),
    "rnn": _stepwise(
        "simple recurrent network (tanh) over rows, pixels, ... (Elman 1990)", partial(SequenceClassifier, "rnn")
    ),
    "irnn": _stepwise("the same with ReLU", partial(SequenceClassifier, "irnn")),
    "gru": _stepwise(
        "gated recurrent units over rows, pixels, ... (Cho et al. 2014)", partial(SequenceClassifier, "gru")
    ),
    "lstm": _stepwise(
        "LSTM over rows, pixels, ... (Hochreiter & Schmidhuber 1997; Gers et al. 2000)",
        partial(SequenceClassifier, "lstm"),
        options=_SEQUENCE | {"truncate", "chunk", "form"},
        forms=("sequential", "cudnn"),
    ),
    "lru": _linear(
        "blocks of linear recurrent units and gated channels, over rows, pixels, ... (Orvieto et al. 2023)",
        partial(LinearSequenceClassifier, LRU),
    ),
    "mingru": _linear("the same with minGRU (Feng et al. 2024)", partial(LinearSequenceClassifier, MinGRU)),
    "minlstm": _linear("the same with minLSTM (Feng et al. 2024)", partial(LinearSequenceClassifier, MinLSTM)),
    "rglru": _linear("the same with RG-LRU (De et al. 2024)", partial(LinearSequenceClassifier, RGLRU)),
    "crnn": _sequence(
        "three convolutions and a bidirectional LSTM over time (Shi et al. 2015)",
        Crnn,
        options=frozenset(("read", "hidden", "layers", "dropout")),
        reads=("rows", "columns"),
    ),
    "sequencer2d_s": _sequencer("Sequencer2D-S: LSTMs over both axes (Tatsunami & Taki 2022)", sequencer2d_s),
    "sequencer2d_m": _sequencer("the same, 24 blocks", sequencer2d_m),
    "sequencer2d_l": _sequencer("the same, 36 blocks", sequencer2d_l),
    "rglru2d_s": _sequencer(
        "Sequencer2D-S with RG-LRUs, linear recurrences, and gated channels (De et al. 2024)", rglru2d_s
    ),
    "rglru2d_tiny": _staged(
        "the same, small, for images of 28 to 64 pixels",
        rglru2d_tiny,
        image_size=28,
        min_size=4,
        channels=1,
        classes=10,
    ),
}


def model_entry(name: str) -> Entry:
    """The facts of a model; UserError with the nearest known name."""
    if name in MODELS:
        return MODELS[name]
    close = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.4)
    hint = f"the nearest is {close[0]!r}" if close else f"known: {', '.join(MODELS)}"
    raise UserError(f"model.name is {name!r}; there is no such model; {hint}")


def define_model(
    name: str,
    *,
    height: int,
    width: int,
    channels: int,
    classes: int,
    precision: str = "float32",
    dropout: float = 0.0,
    drop_path: float = 0.0,
    remat: Sequence[str] = (),
    pool: str | None = None,
    head: str = "linear",
    widths: Sequence[int] = (),
    read: str | None = None,
    patch: int = 0,
    hidden: int = 0,
    layers: int = 0,
    bidirectional: bool | None = None,
    truncate: int = 0,
    chunk: int = 0,
    form: str | None = None,
) -> ModelDef:
    """A model for images of a size, without its arrays.

    Args:
      name: of the registry.
      height, width, channels, classes: of images and logits.
      precision: type of the computation.
      dropout, drop_path: shares dropped in training; 0: none.
      remat: what each stage's blocks keep for the backward pass; empty: all that it needs.
      pool: over all positions, before the head; None: as is customary for the model.
      head: `linear`, or `cosine` in the place of the model's own.
      widths: of the network's layers; empty: the customary ones.
      read, patch: the order in which an image is read, and the size of patches; None, 0: as is customary for the model.
      hidden, layers, bidirectional: sizes of recurrent layers; 0, None: the customary ones.
      truncate: steps that gradients go back over; 0: all.
      chunk: steps of which the backward pass keeps one state; 0: it keeps all.
      form: in which recurrences run; None: the fastest that was measured.

    Raises:
      UserError: unknown name, images too small for it, an option that it does not have, or one that it has not so.
    """
    entry = model_entry(name)
    if min(height, width) < entry.min_size:
        raise UserError(
            f"{name} needs images of {entry.min_size} x {entry.min_size} or more, and these are {height} x {width}; "
            f"set data.image_size, for example to {entry.image_size}"
        )
    options = {
        "dropout": dropout,
        "drop_path": drop_path,
        "remat": remat,
        "pool": pool,
        "widths": tuple(widths),
        "read": read,
        "patch": patch,
        "hidden": hidden,
        "layers": layers,
        "bidirectional": bidirectional,
        "truncate": truncate,
        "chunk": chunk,
        "form": form,
    }
    # `bidirectional: false` is a wish too, where a model is so by custom.
    options = {key: value for key, value in options.items() if value or value is False}
    _check_options(name, entry, options)
    size = {"height": height, "width": width} if entry.fixed_size else {}
    dtype = jnp.dtype(precision)

    def build(rngs: nnx.Rngs) -> nnx.Module:
        model: Any = entry.build(**size, **options, channels=channels, classes=classes, dtype=dtype, rngs=rngs)
        if head == "cosine":
            model.head = CosineHead(*model.head.kernel.shape, dtype=dtype, rngs=rngs)
        return model

    return ModelDef.of(build, takes_lengths=entry.lengths)


def _check_options(name: str, entry: Entry, options: dict[str, Any]) -> None:
    for key in options:
        if key not in entry.options:
            having = ", ".join(other for other, facts in MODELS.items() if key in facts.options)
            raise UserError(f"model.{key} has no effect with {name}; models that have it: {having}")
    remat = options.get("remat")
    if remat and len(remat) != entry.stages:
        raise UserError(f"model.remat has {len(remat)} entries; {name} has {entry.stages} stages: write one for each")
    widths = options.get("widths")
    if entry.widths and widths and (len(widths) not in entry.widths.counts or min(widths) < 1):
        counts = " or ".join(map(str, entry.widths.counts))
        raise UserError(
            f"model.widths is {list(widths)}; {name} has {entry.widths.of}: "
            f"write {counts} numbers >= 1, as in {list(entry.widths.usual)}"
        )
    for key, verb, allowed in (("read", "reads", entry.reads), ("form", "runs", entry.forms)):
        if key in options and options[key] not in allowed:
            raise UserError(f"model.{key} is {options[key]!r}; {name} {verb} {' or '.join(allowed)}")


def customary_model(name: str) -> ModelDef:
    """A model at its customary image size and class count."""
    entry = model_entry(name)
    size = entry.image_size
    return define_model(name, height=size, width=size, channels=entry.channels, classes=entry.classes)
