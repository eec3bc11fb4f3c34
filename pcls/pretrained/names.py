"""The names that timm and torchvision give the tensors of a model: rules, one table a family."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pcls.errors import UserError
from pcls.models.resnet import DEEP_RESNETS, RESNETS

# A regular expression over a path of pcls, such as `stages/0/1/conv1/kernel`, and what stands there instead.
Rule = tuple[str, str | Callable[[re.Match[str]], str]]

# torch has one name for what is multiplied, and another for running statistics.
_LEAVES: Sequence[Rule] = (
    (r"/(kernel|scale)$", r"/weight"),
    (r"/mean$", r"/running_mean"),
    (r"/var$", r"/running_var"),
)


@dataclass(frozen=True)
class Names:
    """One library's names for a family.

    Attributes:
      rules: applied one after the other to a path of pcls; then leaves get torch's names, and `/` becomes `.`.
      pointwise: the keys of dense kernels that the library holds as 1 x 1 convolutions; None: none.
    """

    rules: Sequence[Rule]
    pointwise: str | None = None

    def key(self, path: str) -> str:
        """Of a parameter or statistic; `stages/0/1/conv1/kernel` is `layer1.1.conv1.weight`."""
        for pattern, replacement in (*self.rules, *_LEAVES):
            path = re.sub(pattern, replacement, path)
        return path.replace("/", ".")

    def is_pointwise(self, key: str) -> bool:
        """Whether the library holds this dense kernel as a 1 x 1 convolution."""
        return self.pointwise is not None and re.search(self.pointwise, key) is not None


def _counted(name: str, first: int) -> Callable[[re.Match[str]], str]:
    """Replaces a number by a name and that number, counted from `first`."""
    return lambda match: f"{name}{int(match[1]) + first}/"


_RESNET = Names(
    (
        (r"^stages/(\d+)/", _counted("layer", 1)),
        (r"/shortcut/conv/", r"/downsample/0/"),
        (r"/shortcut/bn/", r"/downsample/1/"),
        (r"^head/", r"fc/"),
    )
)
_DEEP_RESNET = Names(
    (
        (r"/shortcut/conv/", r"/downsample/1/"),
        (r"/shortcut/bn/", r"/downsample/2/"),
        (r"^conv1/conv1/", r"conv1/0/"),
        (r"^conv1/bn1/", r"conv1/1/"),
        (r"^conv1/conv2/", r"conv1/3/"),
        (r"^conv1/bn2/", r"conv1/4/"),
        (r"^conv1/conv3/", r"conv1/6/"),
        *_RESNET.rules,
    )
)

_OTHER_RESNETS = ("resnext50_32x4d", "wide_resnet50_2")

TIMM: Mapping[str, Names] = {
    **dict.fromkeys((*RESNETS, *_OTHER_RESNETS), _RESNET),
    **dict.fromkeys(DEEP_RESNETS, _DEEP_RESNET),
}
TORCHVISION: Mapping[str, Names] = dict.fromkeys((*RESNETS, *_OTHER_RESNETS), _RESNET)


def timm_names(model: str) -> Names:
    """Of a model of the registry; UserError where timm has no such model, or other weights for it."""
    if model not in TIMM:
        raise UserError(f"timm has no weights for {model!r}; models that it has: {', '.join(TIMM)}")
    return TIMM[model]
