"""The names that timm and torchvision give the tensors of a model: a table of rules for each family."""

from __future__ import annotations

from collections.abc import Mapping

from pcls.errors import UserError
from pcls.models.convnext import CONVNEXTS
from pcls.models.resnet import DEEP_RESNETS, RESNETS
from pcls.pretrained.names.convnext import TIMM_CONVNEXT, TIMM_SMALL_CONVNEXT, TORCHVISION_CONVNEXT
from pcls.pretrained.names.efficientnet import (
    EFFICIENTNET,
    EFFICIENTNET_V2,
    MOBILENET,
    TORCHVISION_EFFICIENTNETS,
    TORCHVISION_MOBILENETS,
)
from pcls.pretrained.names.resnet import DEEP_RESNET, RESNET
from pcls.pretrained.names.rules import Names
from pcls.pretrained.names.sequencer import SEQUENCER

_PLAIN_RESNETS = (*RESNETS, "resnext50_32x4d", "wide_resnet50_2")
_LARGE_CONVNEXTS = ("convnext_tiny", "convnext_small", "convnext_base")
_EFFICIENTNETS = ("efficientnet_b0", "tf_efficientnet_b0")
_EFFICIENTNETS_V2 = ("efficientnetv2_s", "tf_efficientnetv2_s", "efficientnetv2_rw_s")
_MOBILENETS = (
    "mobilenetv3_large_100",
    "mobilenetv3_small_100",
    "tf_mobilenetv3_large_100",
    "tf_mobilenetv3_small_100",
)

TIMM: Mapping[str, Names] = {
    **dict.fromkeys(_PLAIN_RESNETS, RESNET),
    **dict.fromkeys(DEEP_RESNETS, DEEP_RESNET),
    **dict.fromkeys(CONVNEXTS, TIMM_SMALL_CONVNEXT),
    **dict.fromkeys(_LARGE_CONVNEXTS, TIMM_CONVNEXT),
    **dict.fromkeys(("sequencer2d_s", "sequencer2d_m", "sequencer2d_l"), SEQUENCER),
    **dict.fromkeys(_EFFICIENTNETS, EFFICIENTNET),
    **dict.fromkeys(_EFFICIENTNETS_V2, EFFICIENTNET_V2),
    **dict.fromkeys(_MOBILENETS, MOBILENET),
}
TORCHVISION: Mapping[str, Names] = {
    **dict.fromkeys(_PLAIN_RESNETS, RESNET),
    **dict.fromkeys(_LARGE_CONVNEXTS, TORCHVISION_CONVNEXT),
    **TORCHVISION_EFFICIENTNETS,
    **TORCHVISION_MOBILENETS,
}


def timm_names(model: str) -> Names:
    """Of a model of the registry; UserError where timm has no such model."""
    if model not in TIMM:
        raise UserError(f"timm has no weights for {model!r}; models that it has: {', '.join(TIMM)}")
    return TIMM[model]


def names_of(model: str) -> tuple[Names, ...]:
    """Of every library that has a model of the registry; UserError where none does."""
    found = tuple(library[model] for library in (TIMM, TORCHVISION) if model in library)
    if not found:
        raise UserError(
            f"neither timm nor torchvision has weights for {model!r}; models that they have: "
            f"{', '.join(dict.fromkeys((*TIMM, *TORCHVISION)))}"
        )
    return found
