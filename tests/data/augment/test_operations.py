"""Every operation against Pillow's, in grey levels, on noise and on something smooth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from pcls.data.augment.operations import Op, Operation, applied

HEIGHT, WIDTH, FILL = 16, 20, (124, 116, 103)


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / 4 + channel) * np.cos(x / 5 - channel) for channel in range(3)]
    return (110 + 90 * np.stack(waves, -1)).astype(np.uint8)


IMAGES = {
    "noise": np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8),
    "smooth": smooth(HEIGHT, WIDTH),
    "grey": np.repeat(smooth(HEIGHT, WIDTH)[..., :1], 3, -1),
    "flat": np.full((HEIGHT, WIDTH, 3), 90, np.uint8),
}


def transformed(*matrix):
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL
    )


def added(amount):
    return lambda image: image.point([min(255, level + amount) if level < 128 else level for level in range(256)] * 3)


def turned(degrees):
    return lambda image: image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=FILL)


def enhanced(kind, factor):
    return lambda image: kind(image).enhance(factor)


# Operation, its argument, the same by Pillow, and how many grey levels a pixel may differ by: 0 where all is whole
# numbers, 1 where a product in float32 may fall on the other side of a whole number than Pillow's does.
CASES = [
    (Op.IDENTITY, 3.0, lambda image: image, 0),
    *((Op.SHEAR_X, factor, transformed(1, factor, 0, 0, 1, 0), 1) for factor in (-0.99, -0.27, 0.3)),
    *((Op.SHEAR_Y, factor, transformed(1, 0, 0, factor, 1, 0), 1) for factor in (-0.27, 0.99)),
    *((Op.TRANSLATE_X, pixels, transformed(1, 0, pixels, 0, 1, 0), 1) for pixels in (-3.3, 0.25, 9.0, 32.0)),
    *((Op.TRANSLATE_Y, pixels, transformed(1, 0, 0, 0, 1, pixels), 1) for pixels in (-7.2, 2.5)),
    *((Op.ROTATE, degrees, turned(degrees), 1) for degrees in (-135.0, -30.0, 7.3, 27.0)),
    *((Op.BRIGHTNESS, factor, enhanced(ImageEnhance.Brightness, factor), 1) for factor in (0.01, 0.19, 1.0, 1.81)),
    *((Op.CONTRAST, factor, enhanced(ImageEnhance.Contrast, factor), 1) for factor in (0.01, 0.19, 1.0, 1.81)),
    *((Op.POSTERIZE, float(bits), lambda image, bits=bits: ImageOps.posterize(image, bits), 0) for bits in (1, 4, 8)),
    (Op.POSTERIZE, 0.0, lambda image: image.point([0] * 768), 0),
    *((Op.SOLARIZE, float(at), lambda image, at=at: ImageOps.solarize(image, at), 0) for at in (0, 26, 128, 256)),
    *((Op.SOLARIZE_ADD, float(amount), added(amount), 0) for amount in (0, 33, 110)),
    (Op.INVERT, 0.0, ImageOps.invert, 0),
    (Op.AUTO_CONTRAST, 0.0, ImageOps.autocontrast, 1),
    (Op.EQUALIZE, 0.0, ImageOps.equalize, 0),
    *((Op.COLOR, factor, enhanced(ImageEnhance.Color, factor), 1) for factor in (0.01, 0.19, 1.0, 1.81)),
    *((Op.SHARPNESS, factor, enhanced(ImageEnhance.Sharpness, factor), 1) for factor in (0.01, 0.19, 1.0, 1.81)),
]


def every_operation(images, fill):
    """[images, cases, height, width, channels]: every operation on every image, by one compiled function."""
    operations = Operation(
        jnp.array([op for op, *_ in CASES], jnp.int32), jnp.array([argument for _, argument, *_ in CASES], jnp.float32)
    )
    over_cases = jax.vmap(applied, in_axes=(None, 0, None))
    every = jax.jit(jax.vmap(over_cases, in_axes=(0, None, None)))
    return np.asarray(every(images, operations, jnp.array(fill, jnp.uint8)))


@pytest.fixture(scope="module")
def results():
    return every_operation(np.stack(list(IMAGES.values())), FILL)


@pytest.mark.parametrize(
    "case", range(len(CASES)), ids=[f"{op.name.lower()}_{argument:g}" for op, argument, *_ in CASES]
)
def test_an_operation_is_pillows(results, case):
    _, _, by_pillow, tolerance = CASES[case]
    for found, image in zip(results[:, case], IMAGES.values(), strict=True):
        expected = np.asarray(by_pillow(Image.fromarray(image)), np.int32)
        assert np.abs(found - expected).max() <= tolerance


def test_a_grey_image_is_changed_as_one_of_equal_colours(results):
    found = every_operation(IMAGES["grey"][None, ..., :1], FILL[:1])
    difference = found[0, ..., 0].astype(int) - results[list(IMAGES).index("grey")][..., 0]
    # Two programs, which may round a product differently.
    assert np.abs(difference).max() <= 1
