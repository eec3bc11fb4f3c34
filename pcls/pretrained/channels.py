"""A bundle for pictures of another number of channels."""

from __future__ import annotations

from dataclasses import replace

from pcls.data.preprocessing import GREY, RGB
from pcls.errors import UserError
from pcls.pretrained.bundle import Bundle
from pcls.pretrained.exchange import with_channels


def first_kernel(bundle: Bundle) -> str:
    """The path of the kernel that sees the picture: the one whose shape depends on the number of channels.

    Raises:
      UserError: the network does not begin with a convolution.
    """
    of_grey, of_colours = bundle.definition(channels=GREY).params, bundle.definition(channels=RGB).params
    found = [path for path, leaf in of_grey.items() if leaf.shape != of_colours[path].shape]
    if len(found) != 1 or len(of_grey[found[0]].shape) != 4:
        raise UserError(f"{bundle.model} has no convolution that alone sees the picture; its channels stay as they are")
    return found[0]


def with_image_channels(bundle: Bundle, channels: int) -> Bundle:
    """The same classifier for pictures of another number of channels.

    Args:
      bundle: of a network whose first layer is a convolution.
      channels: 1 or more; each gets the average of the means and of the deviations that there were.

    Raises:
      UserError: the network does not begin with one.
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
        # What small integers stand for, of one kernel no longer.
        quantization=None,
    )


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return (sum(values) / len(values),) * channels
