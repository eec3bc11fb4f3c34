"""A bundle for pictures of another number of channels."""

from __future__ import annotations

from dataclasses import replace

from pcls.pretrained.bundle import Bundle
from pcls.pretrained.exchange import with_channels

GREY, RGB = 1, 3


def first_kernel(bundle: Bundle) -> str:
    """The path of the kernel that sees the picture: the one whose shape depends on the number of channels."""
    of_grey, of_colours = bundle.definition(channels=GREY).params, bundle.definition(channels=RGB).params
    (path,) = (path for path, leaf in of_grey.items() if leaf.shape != of_colours[path].shape)
    return path


def with_image_channels(bundle: Bundle, channels: int) -> Bundle:
    """The same classifier for grey or RGB pictures.

    Args:
      bundle: of a network whose first layer is a convolution.
      channels: 1 or 3; mean and deviation become the average of those that there were, or are repeated.
    """
    preprocessing = bundle.preprocessing
    if channels == preprocessing.channels:
        return bundle
    mean, std = (_for_channels(values, channels) for values in (preprocessing.mean, preprocessing.std))
    path = first_kernel(bundle)
    return replace(
        bundle,
        preprocessing=replace(preprocessing, channels=channels, mean=mean, std=std),
        params={**bundle.params, path: with_channels(bundle.params[path], channels)},
    )


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return (sum(values) / len(values),) * channels
