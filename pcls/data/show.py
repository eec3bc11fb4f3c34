"""A picture of a training batch as the model sees it, but for the normalisation."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pcls.config.schema import AugmentSection
from pcls.data.augment import alternating, model_inputs, record_keys
from pcls.data.decode import image_of
from pcls.data.pipeline import Batch
from pcls.data.preprocessing import Preprocessing

# Small images are enlarged to about this width, by whole factors, so that their pixels stay visible.
TILE, GAP, LINE = 128, 6, 16
PAPER, INK = (255, 255, 255), (40, 40, 40)


def augmented_images(
    batch: Batch, section: AugmentSection, preprocessing: Preprocessing, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images of a batch as the training step changes them.

    Args:
      batch: on the host.
      section: what changes them.
      preprocessing: whose mean fills what is erased or moved in.
      seed: of the run.

    Returns:
      Images [batch, height, width, channels] uint8, the labels that are mixed in [batch], and the share [batch] of the
      images' own labels.
    """

    @jax.jit
    def change(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        """As the step does it, and back from normalised numbers to grey levels."""
        image, label, weight, record, epoch, _ = batch
        drawn = jax.random.key(seed), epoch, record
        keys, turned = record_keys(*drawn), alternating(*drawn)
        dtype = jnp.dtype("float32")
        inputs, mixture = model_inputs(image, label, weight, keys, section, preprocessing, dtype, turned=turned)
        pixels = (inputs * jnp.array(preprocessing.std) + jnp.array(preprocessing.mean)) * 255
        levels = jnp.clip(jnp.round(pixels), 0, 255).astype(jnp.uint8)
        return levels, *((label, jnp.ones(len(label))) if mixture is None else (mixture.labels, mixture.share))

    images, other, share = jax.device_get(change(batch))
    return images, other, share


def grid(images: np.ndarray, texts: Sequence[str], columns: int) -> Image.Image:
    """Images in rows, each with a line of text below it.

    Args:
      images: [n, height, width, channels] uint8.
      texts: of each; too long ones are cut.
      columns: images in a row.
    """
    factor = max(1, TILE // images.shape[2])
    width, height = images.shape[2] * factor, images.shape[1] * factor
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + LINE + GAP) + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (pixels, text) in enumerate(zip(images, texts, strict=True)):
        row, column = divmod(number, columns)
        left, top = GAP + column * (width + GAP), GAP + row * (height + LINE + GAP)
        image = image_of(pixels).convert("RGB")
        sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (left, top))
        draw.text((left, top + height + 1), shortened(plain(text), width, font), INK, font)
    return sheet


def plain(text: str) -> str:
    """The text in the letters that Pillow's own font has: `Blute` for `Blüte`, `?` for what has no such letter."""
    letters = [c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)]
    return "".join(c if c.isascii() else "?" for c in letters)


def shortened(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, with its end replaced by an ellipsis where it is wider than so many pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def caption(label: str, other: str, share: float) -> str:
    """`cat`, or `70% cat + 30% dog` where another image was mixed in."""
    return label if share > 0.995 or label == other else f"{share:.0%} {label} + {1 - share:.0%} {other}"
