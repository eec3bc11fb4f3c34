"""The names that timm and torchvision give the tensors of a model: a table of rules for each family."""

from __future__ import annotations

from collections.abc import Mapping

from pcls.errors import UserError
from pcls.models.resnet import DEEP_RESNETS, RESNETS
from pcls.pretrained.names.resnet import DEEP_RESNET, RESNET
from pcls.pretrained.names.rules import Names

_PLAIN_RESNETS = (*RESNETS, "resnext50_32x4d", "wide_resnet50_2")

TIMM: Mapping[str, Names] = {
    **dict.fromkeys(_PLAIN_RESNETS, RESNET),
    **dict.fromkeys(DEEP_RESNETS, DEEP_RESNET),
}
TORCHVISION: Mapping[str, Names] = dict.fromkeys(_PLAIN_RESNETS, RESNET)


def timm_names(model: str) -> Names:
    """Of a model of the registry; UserError where timm has no such model."""
    if model not in TIMM:
        raise UserError(f"timm has no weights for {model!r}; models that it has: {', '.join(TIMM)}")
    return TIMM[model]
