"""The speed net against torch's arithmetic in numpy, its first kernel against the covariance of patches."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.errors import UserError
from pcls.models.registry import MODELS, define_model
from pcls.models.speednet import FEATURE_SCALE, partly_identity, whitening_stem

RNG = np.random.default_rng(0)


def net(size=20, channels=3, widths=(8, 12, 16), classes=5):
    return define_model("speednet", height=size, width=size, channels=channels, classes=classes, widths=widths)


def photographs(channels, count=64, size=12):
    """Smooth noise: neighbours and channels resemble each other, as in photographs."""
    rough = RNG.normal(size=(count, size + 2, size + 2, channels)).cumsum(-1)
    return (rough[:, 1:-1, 1:-1] + rough[:, 2:, 1:-1] + rough[:, 1:-1, 2:] + 1).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_outputs_of_the_first_kernel_are_uncorrelated_and_of_equal_size(channels):
    images = photographs(channels)
    (kernel,) = whitening_stem(images).values()
    filters = 4 * channels
    assert (kernel.shape, kernel.dtype) == ((2, 2, channels, 2 * filters), np.float32)
    np.testing.assert_array_equal(kernel[..., :filters], -kernel[..., filters:])
    outputs = np.stack(
        [sum(images[:, i : i + 11, j : j + 11] @ kernel[i, j, :, :filters] for i in range(2) for j in range(2))]
    ).reshape(-1, filters)
    second = outputs.T @ outputs / len(outputs)
    np.testing.assert_allclose(second, np.eye(filters), atol=0.02)
    # From the direction of most variance, whose filter is the smallest, to that of least.
    assert (np.diff(np.linalg.norm(kernel.reshape(filters, -1), axis=0)[:filters]) > 0).all()


def test_a_direction_without_variance_does_not_blow_up():
    grey = np.repeat(photographs(1), 3, -1)
    (kernel,) = whitening_stem(grey).values()
    assert np.linalg.norm(kernel.reshape(12, -1), axis=0).max() <= 1 / math.sqrt(5e-4) * 1.001


def test_the_registry_knows_what_is_computed_from_images():
    entry = MODELS["speednet"]
    assert entry.from_images is not None
    for path, array in entry.from_images(photographs(3)).items():
        assert array.shape == net().params[path].shape


def test_the_first_filters_pass_their_input_on():
    kernel = np.asarray(partly_identity(jax.random.key(0), (3, 3, 4, 6)))
    images = RNG.normal(size=(2, 5, 5, 4)).astype(np.float32)
    out = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(out[..., :4], images, rtol=1e-6)
    # The others: uniform within 1 / sqrt(fan-in), as torch draws them.
    assert 0.9 / 6 < np.abs(kernel[..., 4:]).max() <= 1 / 6
    narrow = partly_identity(jax.random.key(0), (3, 3, 6, 4))
    np.testing.assert_array_equal(np.asarray(narrow).sum((0, 1)), np.eye(6)[:, :4])


def test_a_prediction_is_that_of_numpy():
    definition = net(size=19)
    p = {path: RNG.normal(0, 0.3, leaf.shape).astype(np.float32) for path, leaf in definition.params.items()}
    s = {path: RNG.uniform(0.5, 2, leaf.shape).astype(np.float32) for path, leaf in definition.stats.items()}
    images = RNG.normal(size=(2, 19, 19, 3)).astype(np.float32)

    def convolved(x, kernel, pad):
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))), kernel.shape[:2], (1, 2)
        )
        return np.einsum("bijcuv,uvco->bijo", windows, kernel)

    def pooled(x):
        batch, size, _, channels = x.shape
        half = size // 2
        return x[:, : 2 * half, : 2 * half].reshape(batch, half, 2, half, 2, channels).max((2, 4))

    def gelu(x):
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    def normalised(x, path):
        return (x - s[f"{path}/mean"]) / np.sqrt(s[f"{path}/var"]) + p[f"{path}/bias"]

    x = gelu(convolved(images.astype(np.float64), p["stem/kernel"], 0) + p["stem/bias"])
    for index in range(3):
        at = f"stages/{index}"
        x = gelu(normalised(pooled(convolved(x, p[f"{at}/conv1/kernel"], 1)), f"{at}/bn1"))
        x = gelu(normalised(convolved(x, p[f"{at}/conv2/kernel"], 1), f"{at}/bn2"))
    expected = x.max((1, 2)) @ p["head/kernel"] / 9
    assert pytest.approx(1 / 9) == FEATURE_SCALE
    found, _ = definition.apply(p, s, jnp.asarray(images))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_neither_scales_nor_a_bias_of_the_head_are_trained():
    assert sorted({path.split("/")[-2] + "/" + path.split("/")[-1] for path in net().params}) == [
        "bn1/bias",
        "bn2/bias",
        "conv1/kernel",
        "conv2/kernel",
        "head/kernel",
        "stem/bias",
        "stem/kernel",
    ]


@pytest.mark.parametrize("widths", [(8, 16), (8, 16, 16, 16)])
def test_other_numbers_of_widths_are_refused(widths):
    with pytest.raises(UserError) as raised:
        net(widths=widths)
    assert str(raised.value) == (
        f"model.widths is {list(widths)}; speednet has three groups of convolutions: "
        "write 3 numbers >= 1, as in [64, 256, 256]"
    )
