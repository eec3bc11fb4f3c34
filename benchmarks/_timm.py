"""Imported before timm.

torchvision's wheel is made for CUDA and leaves its operators out without it; none is used here, but its import needs
them declared.
"""

from __future__ import annotations

from torch import library

# What it declares goes when it does.
DECLARED = library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    DECLARED.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
