"""Every primitive that is translated computes in onnxruntime what it computes in JAX, for any number of examples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.errors import UserError
from pcls.models import resnet
from pcls.models.convnext import ConvNeXt
from pcls.models.folding import fold_batch_norm
from pcls.models.registry import define_model
from pcls.models.resnet import Bottleneck, ResNet
from pcls.nn.module import ModelDef
from pcls.nn.platform import compiling_for
from pcls.nn.pooling import max_pool_2x2

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'pcls[export]'")

from pcls.deliver.export_graph import BATCH  # noqa: E402
from pcls.deliver.export_onnx import to_onnx  # noqa: E402
from pcls.deliver.export_quantized import round_to_int8, stand_for  # noqa: E402

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 3, 2, 4)).astype(np.float32)
MATRIX = RNG.normal(size=(4, 4)).astype(np.float32)


def ran(function, **arrays):
    """What onnxruntime makes of the translated function, whatever the number of examples."""
    inputs = {name: jax.ShapeDtypeStruct((BATCH, *array.shape[1:]), array.dtype) for name, array in arrays.items()}
    model = to_onnx(function, inputs, {"note": "größer"}, producer=("test", "1"))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == {"note": "größer"}
    assert session.get_outputs()[0].shape[0] == "batch"
    return session.run(None, arrays)[0]


def convolution(x, groups=1, strides=(2, 1), padding=((1, 0), (2, 1)), dilation=(1, 2)):
    kernel = KERNEL if groups == 1 else KERNEL[:, :, :1]
    x = x[..., :2]
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


def even(x):
    """A convolution that gives 6 rows and 4 columns."""
    return convolution(x, strides=(1, 1), padding=((1, 1), (2, 1)))


def maxima(x, rows):
    """Of every second of four rows from those two on, and of all columns by twos."""
    corners = [x[:, i : i + 3 : 2, j::2] for i in rows for j in (0, 1)]
    return jnp.maximum(jnp.maximum(corners[0], corners[1]), jnp.maximum(corners[2], corners[3]))


def pooled(x, window, strides, padding):
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0))
    )


def remembered(x):
    """A scan backwards over rows, with a product of what it carries."""
    step = lambda carry, row: (jnp.tanh(carry @ MATRIX + row.mean(1)), carry)  # noqa: E731
    last, all_of_them = jax.lax.scan(step, jnp.zeros((x.shape[0], 4)), x.swapaxes(0, 1), reverse=True)
    return last + all_of_them.sum(0)


FUNCTIONS = (
    *(partial(jax.nn.gelu, approximate=False), jax.nn.softplus, jax.nn.silu, jax.nn.hard_swish),
    *(lambda x: jnp.expm1(x / 1000) * 1000, lambda x: jax.lax.rsqrt(x * x + 1), lambda x: x**3),
    *(lambda x: jnp.exp(-jnp.abs(x)), lambda x: jnp.sin(x) * jnp.cos(x), lambda x: jnp.sqrt(jnp.abs(x))),
)
# Of images [n, 6, 5, 4].
OF_IMAGES = {
    "a strided convolution": lambda x: convolution(x),
    "a grouped convolution": lambda x: convolution(x, groups=2),
    "what follows a convolution elementwise": lambda x: jax.nn.relu(convolution(x) * x.mean((1, 2))[:, None, None] + 1),
    "a number for each channel": lambda x: jax.nn.relu(convolution(x) + MATRIX[0]),
    "a number for each channel after the maxima": lambda x: (
        pooled(convolution(x), (2, 2), (1, 1), ((0, 1), (0, 0))) + MATRIX[1]
    ),
    "a convolution before and after its bias": lambda x: (lambda y: y * (y + MATRIX[0]))(convolution(x)),
    "numbers for each channel twice, and one for each place": lambda x: (
        convolution(x) + MATRIX[0] + MATRIX[1] + MATRIX[2].reshape(4, 1)[: convolution(x).shape[1], None]
    ),
    "rounded to int8": lambda x: round_to_int8(convolution(x), 1.0),
    "rounded to int8 after a ReLU": lambda x: round_to_int8(jax.nn.relu(x), 0.5),
    "a kernel of integers, turned": lambda x: x @ stand_for(np.arange(-8, 8, dtype=np.int8).reshape(4, 4), MATRIX[0]).T,
    "integers that are no kernel": lambda x: x * stand_for(np.arange(-8, 8, dtype=np.int8).reshape(4, 4), MATRIX[0])[1],
    "a mean after a convolution": lambda x: convolution(x).mean((1, 2)),
    "a maximum over one axis after a convolution": lambda x: convolution(x).max(2),
    "a convolution padded, cut and turned": lambda x: jnp.pad(convolution(x), ((0, 0), (1, 2), (0, 0), (3, 0)))[
        :, 1:, ::-1, ::2
    ],
    "two convolutions side by side": lambda x: jnp.concatenate([convolution(x), convolution(x + 1)], 1),
    "maxima of blocks": lambda x: max_pool_2x2(convolution(x, strides=(1, 1))),
    "maxima of some of the blocks": lambda x: maxima(even(x), (0, 1)),
    "maxima of blocks that overlap": lambda x: maxima(even(x), (0, 2)),
    "pooling with padding": lambda x: pooled(x, (3, 3), (2, 2), ((1, 1), (1, 0))),
    "numbers pushed apart": lambda x: jax.lax.pad(x, np.float32(7), ((0, 0, 0), (1, 0, 2), (0, 2, 1), (0, 0, 0))),
    "padding with the edge": lambda x: jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0)), mode="edge"),
    "a product over two axes": lambda x: jnp.einsum(
        "nhwc,wcd->nhd", x, KERNEL.reshape(3, 6, 4)[:, :4].repeat(2, 0)[:5]
    ),
    "products of each example": lambda x: jnp.einsum("nhwc,nhvc->nhwv", x, x),
    "a product from the left": lambda x: jnp.einsum("dc,nhwc->nhdw", MATRIX, x),
    "parts": lambda x: jnp.split(x, (1, 3), 2)[1] * 2,
    "a loop backwards": remembered,
    "functions": lambda x: jnp.stack([function(x) for function in FUNCTIONS], -1),
    "choices": lambda x: jnp.where((x > 0) & (x <= 1) | (x != x), jnp.minimum(x, 0.5), -x),
    "softmax": lambda x: jax.nn.softmax(x, -1),
    "places": lambda x: x * jnp.arange(5)[:, None],
    "a constant for every example": lambda x: jnp.broadcast_to(jnp.arange(3.0), (x.shape[0], 3)),
}


@pytest.mark.parametrize("what", OF_IMAGES)
def test_onnxruntime_computes_what_jax_computes(what):
    for examples in (1, 3):
        x = np.random.default_rng(examples).normal(size=(examples, 6, 5, 4)).astype(np.float32)
        expected = OF_IMAGES[what](jnp.asarray(x))
        found = ran(lambda images: OF_IMAGES[what](images), images=x)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


def test_each_row_is_read_where_its_length_says():
    x = RNG.normal(size=(3, 6, 4)).astype(np.float32)
    lengths = np.array([1, 6, 4], np.int32)

    def last(images, lengths):
        halved = -(-lengths // 2) - 1
        return jnp.take_along_axis(images, halved[:, None, None], 1)[:, 0]

    np.testing.assert_array_equal(ran(last, images=x, lengths=lengths), x[[0, 1, 2], [0, 2, 1]])


def test_uint8_images_are_taken():
    x = RNG.integers(0, 256, (2, 3, 3, 1), np.uint8)
    np.testing.assert_allclose(ran(lambda images: images.astype(jnp.float32) / 255, images=x), x / 255, rtol=1e-6)


def test_what_is_not_translated_is_refused_by_its_name():
    with pytest.raises(UserError, match=r"^--to onnx: the model does 'sort' somewhere, which is not translated"):
        ran(lambda images: jnp.sort(images), images=np.zeros((2, 3), np.float32))


def with_small_stages(monkeypatch):
    monkeypatch.setattr(resnet, "STAGE_WIDTHS", (8, 8, 8, 8))
    return partial(ResNet, Bottleneck, (1, 1, 0, 0), deep=True)


MODELS = {
    "residual": with_small_stages,
    "convnext": lambda _: partial(ConvNeXt, (1, 1, 0, 0), (4, 8, 8, 8)),
}


def arrays_of(definition):
    params = {
        path: (RNG.normal(0, 1 / np.sqrt(max(1, np.prod(leaf.shape[:-1]))), leaf.shape)).astype(np.float32)
        for path, leaf in definition.params.items()
    }
    return params, {path: np.ones(leaf.shape, np.float32) for path, leaf in definition.stats.items()}


def graph_of(definition, size, channels):
    """How often the graph transposes, what onnxruntime says of 3 images, and what the model says."""
    params, stats = arrays_of(definition)
    folded = fold_batch_norm(definition, params, stats)
    images = RNG.normal(size=(3, size, size, channels)).astype(np.float32)

    def logits(images):
        with compiling_for("cuda"):
            return folded[0].apply(*folded[1:], images)[0]

    inputs = {"images": jax.ShapeDtypeStruct((BATCH, size, size, channels), jnp.float32)}
    nodes = to_onnx(logits, inputs, {}, producer=("test", "1")).graph.node
    expected = jax.jit(lambda *arrays: definition.apply(*arrays)[0])(params, stats, images)
    return sum(node.op_type == "Transpose" for node in nodes), ran(logits, images=images), expected


@pytest.mark.parametrize(("kind", "transposed"), [("residual", 3), ("convnext", 13)])
def test_what_follows_a_convolution_stays_channels_first(kind, transposed, monkeypatch):
    build = MODELS[kind](monkeypatch)
    definition = ModelDef.of(lambda rngs: build(channels=3, classes=5, dtype=jnp.float32, rngs=rngs))
    times, found, expected = graph_of(definition, 16, 3)
    assert np.linalg.norm(found - expected) < 2e-6 * np.linalg.norm(expected)
    assert times <= transposed


def test_maxima_of_blocks_are_one_pooling_and_a_bias_is_a_convolutions_own():
    def logits(images):
        return jax.nn.relu(max_pool_2x2(even(images)) + MATRIX[0])

    inputs = {"images": jax.ShapeDtypeStruct((BATCH, 6, 5, 2), jnp.float32)}
    nodes = to_onnx(logits, inputs, {}, producer=("test", "1")).graph.node
    assert [node.op_type for node in nodes] == ["Transpose", "Conv", "MaxPool", "Relu", "Transpose", "Identity"]


@pytest.mark.parametrize("name", ["rnn28", "lstm", "mingru"])
def test_a_recurrent_network_is_its_steps(name):
    options = {} if name == "rnn28" else {"hidden": 4, "layers": 1}
    definition = define_model(name, height=4, width=4, channels=1, classes=3, **options)
    _, found, expected = graph_of(definition, 4, 1)
    assert np.linalg.norm(found - expected) < 2e-6 * np.linalg.norm(expected)
