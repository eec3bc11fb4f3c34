"""config.json as timm writes it beside weights: which network, what it expects of an image, what its outputs mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pcls.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, MAX_CHANNELS, Preprocessing, TrainingSize
from pcls.errors import UserError
from pcls.nn.module import HEAD_KERNEL
from pcls.nn.pooling import Pool
from pcls.pretrained.bundle import Bundle
from pcls.pretrained.channels import first_kernel
from pcls.pretrained.names import timm_names

MAX_BYTES = 1 << 24
Side = Annotated[int, Field(ge=1, le=8192)]
Size = tuple[Annotated[int, Field(ge=1, le=MAX_CHANNELS)], Side, Side]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
# timm's names of options that pcls has too.
POOL = "global_pool"
CHANNELS = "in_chans"
# Those of timm's arguments that pcls follows; what is dropped in training concerns no weights.
MODEL_ARGUMENTS = (CHANNELS, POOL, "num_classes", "drop_rate", "drop_path_rate", "drop_block_rate")


class _Read(BaseModel):
    """A part of the file; what pcls has no use for is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=False)


class PretrainedConfig(_Read):
    """What the weights expect; defaults as timm's.

    Attributes:
      tag: of the weights' name, after the dot.
      input_size, test_input_size: channels, height, width, of training and of tests; the second if it differs.
      crop_pct, test_crop_pct: the same of crops.
      license: empty: not stated.
    """

    tag: str | None = None
    input_size: Size = (3, 224, 224)
    test_input_size: Size | None = None
    crop_pct: Share = 0.875
    test_crop_pct: Share | None = None
    crop_mode: Literal["center", "squash", "border"] = "center"
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: tuple[Number, ...] = IMAGENET_MEAN
    std: tuple[Positive, ...] = IMAGENET_STD
    license: str | None = None

    def preprocessing(self) -> Preprocessing:
        """Of the weights."""
        channels, height, width = self.test_input_size or self.input_size
        evaluation = Preprocessing(
            height=height,
            width=width,
            channels=channels,
            mean=self.mean,
            std=self.std,
            crop_pct=self.test_crop_pct or self.crop_pct,
            crop_mode=self.crop_mode,
            interpolation=self.interpolation,
        )
        return evaluation.trained_at(TrainingSize(*self.input_size[1:], self.crop_pct))


class TimmConfig(_Read):
    """The file.

    Attributes:
      architecture: timm's name of the network.
      num_classes: outputs.
      label_names: of the outputs.
      global_pool: timm's name of the pooling; null: the customary one.
      model_args: other options of the network.
    """

    architecture: str
    num_classes: Annotated[int, Field(ge=0, le=2**24)]
    label_names: tuple[str, ...] | None = None
    global_pool: str | None = None
    model_args: dict[str, Any] = {}
    pretrained_cfg: PretrainedConfig

    @property
    def name(self) -> str:
        """`architecture.tag`."""
        tag = self.pretrained_cfg.tag
        return f"{self.architecture}.{tag}" if tag else self.architecture

    @property
    def options(self) -> dict[str, Any]:
        """Of `define_model`."""
        pool = self.model_args.get(POOL, self.global_pool)
        return {} if pool in (None, "avg") else {"pool": pool}


def read_config(path: Path) -> TimmConfig:
    """Reads and checks the file.

    Raises:
      UserError: it is damaged, or asks for what pcls does not have.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: is no configuration of timm: larger than {MAX_BYTES >> 20} MiB")
        config = TimmConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"])) or "the file"
        raise UserError(f"{path}: {key}: {fault['msg'].lower()}; timm writes it otherwise") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON file ({error})") from error
    _check(path, config)
    return config


def _check(path: Path, config: TimmConfig) -> None:
    pretrained = config.pretrained_cfg
    channels = pretrained.input_size[0]
    if not len(pretrained.mean) == len(pretrained.std) == channels:
        raise UserError(f"{path}: pretrained_cfg: mean and std need a number for each of the {channels} channels")
    if (pretrained.test_input_size or pretrained.input_size)[0] != channels:
        raise UserError(f"{path}: pretrained_cfg: input_size and test_input_size differ in their channels")
    pool = config.options.get("pool", "avg")
    if pool not in get_args(Pool):
        raise UserError(f"{path}: {POOL} is {pool!r}; pcls has {', '.join(get_args(Pool))}")
    strange = [key for key in config.model_args if key not in MODEL_ARGUMENTS]
    if strange:
        raise UserError(f"{path}: model_args.{strange[0]} changes the network in a way that pcls does not have")
    if config.model_args.get("num_classes", config.num_classes) != config.num_classes:
        raise UserError(f"{path}: model_args.num_classes and num_classes differ")
    if config.model_args.get(CHANNELS, channels) != channels:
        raise UserError(f"{path}: model_args.{CHANNELS} and pretrained_cfg.input_size differ in their channels")


def config_of(bundle: Bundle) -> dict[str, Any]:
    """What timm needs to make a bundle's network and to prepare its images.

    Args:
      bundle: of a model that timm has.
    """
    evaluation, training = bundle.preprocessing, bundle.preprocessing.training
    tag = bundle.origin.get("name", "").partition(".")[2]
    arguments: dict[str, Any] = {CHANNELS: evaluation.channels} if evaluation.channels != 3 else {}
    if "pool" in bundle.options:
        arguments[POOL] = bundle.options["pool"]
    classes, names = len(bundle.class_names), timm_names(bundle.model)
    return {
        "architecture": bundle.model,
        "num_classes": classes,
        "label_names": list(bundle.class_names),
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": tag,
            "input_size": [training.channels, training.height, training.width],
            "test_input_size": [evaluation.channels, evaluation.height, evaluation.width],
            "interpolation": evaluation.interpolation,
            "crop_pct": training.crop_pct,
            "test_crop_pct": evaluation.crop_pct,
            "crop_mode": evaluation.crop_mode,
            "mean": list(evaluation.mean),
            "std": list(evaluation.std),
            "num_classes": classes,
            # What timm changes where it is asked for other channels or classes.
            "first_conv": names.key(first_kernel(bundle)).removesuffix(".weight"),
            "classifier": names.key(HEAD_KERNEL).removesuffix(".weight"),
            "license": bundle.origin.get("licence", ""),
        },
    }
