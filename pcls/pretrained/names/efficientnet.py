"""Names in EfficientNet and MobileNetV3: timm's for both, and torchvision's for the one network that it has alike.

torchvision's MobileNetV3 and EfficientNetV2-S pad as PyTorch does and normalise with TensorFlow's epsilon, which no
model here does.
"""

from pcls.pretrained.names.rules import Names, Rule, counted

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

TORCHVISION_B0 = Names(
    (
        (r"^stem/", r"features/0/"),
        (r"^stages/0/0/depthwise/", r"features/1/0/block/0/"),
        (r"^stages/0/0/squeeze/", r"features/1/0/block/1/"),
        (r"^stages/0/0/project/", r"features/1/0/block/2/"),
        (r"^stages/(\d+)/", counted("features/", 1)),
        (r"/expand/(conv|bn)/", r"/block/0/\1/"),
        (r"/depthwise/", r"/block/1/"),
        (r"/squeeze/", r"/block/2/"),
        (r"/project/", r"/block/3/"),
        (r"^last/", r"features/8/"),
        (r"/reduce/", r"/fc1/"),
        (r"/expand/", r"/fc2/"),
        (r"/conv/", r"/0/"),
        (r"/bn/", r"/1/"),
        (r"^head/", r"classifier/1/"),
    ),
    pointwise=r"\.fc[12]\.weight$",
)
