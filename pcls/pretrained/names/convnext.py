"""Names in ConvNeXts."""

from __future__ import annotations

import re

from pcls.pretrained.names.rules import Names


def _torchvision_stage(match: re.Match[str]) -> str:
    """A stage's blocks and the downsampling before them are neighbours in one list, which the stem begins."""
    place = 2 * int(match[1])
    return f"features/{place}/" if match[2] == "downsample" else f"features/{place + 1}/"


TIMM_CONVNEXT = Names(
    (
        (r"^stem/", r"stem/0/"),
        (r"^stem_norm/", r"stem/1/"),
        (r"/downsample/norm/", r"/downsample/0/"),
        (r"/downsample/conv/", r"/downsample/1/"),
        (r"/(\d+)/conv/", r"/\1/conv_dw/"),
        (r"/expand/", r"/mlp/fc1/"),
        (r"/project/", r"/mlp/fc2/"),
        (r"/blocks/(\d+)/scale$", r"/blocks/\1/gamma"),
        (r"^norm/", r"head/norm/"),
        (r"^head/(kernel|bias)$", r"head/fc/\1"),
    )
)
# The small ones, whose dense layers are convolutions there.
TIMM_SMALL_CONVNEXT = Names(TIMM_CONVNEXT.rules, pointwise=r"\.mlp\.fc[12]\.weight$")
TORCHVISION_CONVNEXT = Names(
    (
        (r"^stem/", r"features/0/0/"),
        (r"^stem_norm/", r"features/0/1/"),
        (r"/downsample/norm/", r"/downsample/0/"),
        (r"/downsample/conv/", r"/downsample/1/"),
        (r"/(\d+)/conv/", r"/\1/block/0/"),
        (r"/(\d+)/norm/", r"/\1/block/2/"),
        (r"/expand/", r"/block/3/"),
        (r"/project/", r"/block/5/"),
        (r"/blocks/(\d+)/scale$", r"/blocks/\1/layer_scale"),
        (r"^stages/(\d+)/(downsample|blocks)/", _torchvision_stage),
        (r"^norm/", r"classifier/0/"),
        (r"^head/", r"classifier/2/"),
    ),
    pointwise=r"\.layer_scale$",
)
