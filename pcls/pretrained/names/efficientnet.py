"""Names in EfficientNet and MobileNetV3, timm's and torchvision's."""

from __future__ import annotations

from collections.abc import Sequence

from pcls.models.efficientnet import B0, V2_S
from pcls.models.inverted import Fused, Single, Stage
from pcls.models.mobilenet import LARGE, SMALL
from pcls.pretrained.names.rules import Names, Rule

_TIMM: tuple[Rule, ...] = (
    (r"^stem/conv/", r"conv_stem/"),
    (r"^stem/bn/", r"bn1/"),
    (r"^stages/", r"blocks/"),
    (r"/(single|fused|expand)/bn/", r"/bn1/"),
    (r"/single/conv/", r"/conv/"),
    (r"/fused/conv/", r"/conv_exp/"),
    (r"/expand/conv/", r"/conv_pw/"),
    (r"/depthwise/conv/", r"/conv_dw/"),
    (r"/depthwise/bn/", r"/bn2/"),
    (r"/squeeze/(reduce|expand)/", r"/se/conv_\1/"),
    (r"/project/conv/", r"/conv_pwl/"),
    (r"/project/bn/", r"/bn3/"),
    (r"^last/conv/", r"conv_head/"),
    (r"^last/bn/", r"bn2/"),
    (r"^hidden/", r"conv_head/"),
    (r"^head/", r"classifier/"),
)
# Numbers count the layers that a block has, and these blocks have one less.
_UNEXPANDED: tuple[Rule, ...] = (
    (r"^stages/0/(\d+)/depthwise/bn/", r"blocks/0/\1/bn1/"),
    (r"^stages/0/(\d+)/project/conv/", r"blocks/0/\1/conv_pw/"),
    (r"^stages/0/(\d+)/project/bn/", r"blocks/0/\1/bn2/"),
)
_FUSED: tuple[Rule, ...] = ((r"^stages/([012])/(\d+)/project/bn/", r"blocks/\1/\2/bn2/"),)

_SQUEEZE = r"\.se\.conv_\w+\.weight$"

EFFICIENTNET = Names((*_UNEXPANDED, *_TIMM), pointwise=_SQUEEZE)
EFFICIENTNET_V2 = Names((*_FUSED, *_TIMM), pointwise=_SQUEEZE)
MOBILENET = Names((*_UNEXPANDED, *_TIMM), pointwise=rf"{_SQUEEZE}|^conv_head\.weight$")


def _torchvision(stages: Sequence[Stage], *, flat: bool, ends: Sequence[Rule]) -> Names:
    """torchvision's names: the layers of a block are numbered, those that it has.

    Args:
      stages: of the network.
      flat: blocks are numbered through all stages, and a last layer of its own kind among them; else within each.
      ends: rules for what follows the blocks.
    """
    rules: list[Rule] = []
    place = 0
    for index, stage in enumerate(stages):
        for position, expansion in enumerate(stage.expansions):
            place += 1
            block = f"features/{place}" if flat else f"features/{index + 1}/{position}"
            for number, layer in enumerate(_layers(stage, expansion)):
                there = block if flat and layer == "single" else f"{block}/block/{number}"
                rules.append((rf"^stages/{index}/{position}/{layer}/", f"{there}/"))
    within: tuple[Rule, ...] = (
        (r"/reduce/", r"/fc1/"),
        (r"/expand/", r"/fc2/"),
        (r"/conv/", r"/0/"),
        (r"/bn/", r"/1/"),
    )
    return Names((*rules, (r"^stem/", r"features/0/"), *ends, *within), pointwise=r"\.fc[12]\.weight$")


def _layers(stage: Stage, expansion: float) -> list[str]:
    """Of a block, in order."""
    if stage.block is Single:
        return ["single"]
    if stage.block is Fused:
        return ["fused", "project"]
    return [
        *(["expand"] if expansion != 1 else []),
        "depthwise",
        *(["squeeze"] if stage.squeeze else []),
        "project",
    ]


def _torchvision_efficientnet(stages: Sequence[Stage]) -> Names:
    ends = (r"^last/", f"features/{len(stages) + 1}/"), (r"^head/", r"classifier/1/")
    return _torchvision(stages, flat=False, ends=ends)


_MOBILENET_ENDS: tuple[Rule, ...] = ((r"^hidden/", r"classifier/0/"), (r"^head/", r"classifier/3/"))

TORCHVISION_EFFICIENTNETS = {
    "efficientnet_b0": _torchvision_efficientnet(B0),
    "efficientnet_v2_s": _torchvision_efficientnet(V2_S),
}
TORCHVISION_MOBILENETS = {
    "mobilenet_v3_large": _torchvision(LARGE, flat=True, ends=_MOBILENET_ENDS),
    "mobilenet_v3_small": _torchvision(SMALL, flat=True, ends=_MOBILENET_ENDS),
}
