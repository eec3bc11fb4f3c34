"""Every model: its exact parameter count, its shapes and types, what it refuses, and the numbers of the small ones."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pcls.errors import UserError
from pcls.models import convnext, efficientnet, mobilenet, resnet
from pcls.models.convnext import ConvNeXt
from pcls.models.efficientnet import EfficientNet
from pcls.models.inverted import Fused, Inverted, Single, SqueezeExcite, Stage, plan_of
from pcls.models.mobilenet import MobileNetV3
from pcls.models.registry import MODELS, customary_model, define_model, model_entry
from pcls.models.resnet import BasicBlock, Bottleneck, ResNet
from pcls.nn.dropout import Dropout
from pcls.nn.module import ModelDef
from pcls.nn.platform import compiling_for
from pcls.nn.pooling import max_pool_3x3_stride_2
from pcls.nn.training import TrainingPass

# The counts of Keras' tutorial, of the formula 28*32 + 32*32 + 32 + 32*10 + 10, of torchvision and timm, of the usual
# ResNet-18 for CIFAR, and of the formulas of recurrent layers: g * (28 * 128 + 128 * 128 + 128) + 128 * 10 + 10 with
# 1, 3 and 4 gates g, 128 more for the GRU's second bias.
COUNTS = {
    "cnn28": 121_930,
    "rnn28": 2_282,
    "irnn28": 2_282,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet18d": 11_708_744,
    "resnet34d": 21_816_904,
    "resnet50d": 25_576_264,
    "resnet101d": 44_568_392,
    "resnet152d": 60_212_040,
    "resnext50_32x4d": 25_028_904,
    "wide_resnet50_2": 68_883_240,
    "resnet18_cifar": 11_173_962,
    # 1.97 million in the paper: its formula with the frozen whitening kernel.
    "speednet": 1_971_640,
    "convnext_atto": 3_695_520,
    "convnext_femto": 5_217_784,
    "convnext_pico": 9_045_672,
    "convnext_nano": 15_593_560,
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "efficientnet_b0": 5_288_548,
    "tf_efficientnet_b0": 5_288_548,
    "efficientnetv2_s": 21_458_488,
    "tf_efficientnetv2_s": 21_458_488,
    "efficientnetv2_rw_s": 23_941_296,
    "efficientnet_v2_s": 21_458_488,
    "mobilenetv3_large_100": 5_483_032,
    "mobilenetv3_small_100": 2_542_856,
    "tf_mobilenetv3_large_100": 5_483_032,
    "tf_mobilenetv3_small_100": 2_542_856,
    "mobilenet_v3_large": 5_483_032,
    "mobilenet_v3_small": 2_542_856,
    "rnn": 21_386,
    "irnn": 21_386,
    "gru": 61_706,
    "lstm": 81_674,
    "lru": 467_594,
    "mingru": 270_474,
    "minlstm": 336_522,
    "rglru": 206_986,
    "crnn": 1_146_090,
    "sequencer2d_s": 27_651_688,
    "sequencer2d_m": 38_307_688,
    "sequencer2d_l": 54_298_216,
    "rglru2d_s": 27_663_976,
    "rglru2d_tiny": 231_882,
}
# Traced whole: one of each family, and not those of dozens of blocks that test_sequencer.py has alone, in seconds less.
TRACED = (
    *("cnn28", "rnn28", "irnn28", "resnet18", "resnet50d", "resnext50_32x4d", "resnet18_cifar", "convnext_tiny"),
    *("speednet", "tf_efficientnet_b0", "mobilenetv3_small_100"),
    *("rnn", "irnn", "gru", "lstm", "lru", "mingru", "minlstm", "rglru", "crnn", "rglru2d_tiny"),
)
KEYS = jax.random.split(jax.random.key(0), 4)


def logits_shape(definition, *image_shape: int) -> jax.ShapeDtypeStruct:
    """Shape and type of the logits, without computing them."""
    images = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    logits, _ = jax.eval_shape(
        lambda params, stats, images: definition.apply(params, stats, images, TrainingPass()),
        definition.params,
        definition.stats,
        images,
    )
    return logits


@pytest.mark.system
@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_the_parameter_count_is_the_published_one(name, count):
    assert customary_model(name).parameter_count == count


def test_every_registered_model_is_counted_here():
    assert list(MODELS) == list(COUNTS)


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize(("height", "width", "channels", "classes"), [(32, 32, 1, 2), (48, 40, 3, 7)])
def test_any_size_and_class_count_gives_one_logit_a_class(name, height, width, channels, classes):
    definition = define_model(name, height=height, width=width, channels=channels, classes=classes)
    assert logits_shape(definition, 5, height, width, channels).shape == (5, classes)


@pytest.mark.parametrize("name", TRACED)
def test_bfloat16_computes_with_float32_parameters_and_statistics(name):
    definition = define_model(name, height=32, width=32, channels=3, classes=4, precision="bfloat16")
    assert {leaf.dtype.name for leaf in (definition.params | definition.stats).values()} == {"float32"}
    assert logits_shape(definition, 2, 32, 32, 3).dtype == jnp.bfloat16
    _, stats = jax.eval_shape(
        lambda p, s: definition.apply(p, s, jnp.zeros((2, 32, 32, 3), jnp.bfloat16), TrainingPass()),
        definition.params,
        definition.stats,
    )
    assert {path: leaf.shape for path, leaf in stats.items()} == {p: leaf.shape for p, leaf in definition.stats.items()}
    assert {leaf.dtype.name for leaf in stats.values()} <= {"float32"}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("cnn28", 9),
        ("rnn28", 1),
        ("resnet18", 31),
        ("resnet18_cifar", 7),
        ("speednet", 8),
        ("convnext_tiny", 31),
        ("tf_efficientnetv2_s", 31),
        ("sequencer2d_s", 13),
        ("rglru2d_tiny", 3),
    ],
)
def test_images_too_small_are_refused(name, size):
    with pytest.raises(UserError) as raised:
        define_model(name, height=size, width=64, channels=1, classes=2)
    least, customary = size + 1, MODELS[name].image_size
    assert str(raised.value) == (
        f"{name} needs images of {least} x {least} or more, and these are {size} x 64; "
        f"set data.image_size, for example to {customary}"
    )


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("cnn28", 10),
        ("rnn28", 2),
        ("resnet18", 32),
        ("resnet18_cifar", 8),
        ("resnet50", 32),
        ("convnext_tiny", 32),
        ("mobilenetv3_small_100", 32),
        ("lstm", 1),
        ("lru", 1),
        ("crnn", 1),
        ("rglru2d_tiny", 4),
    ],
)
def test_the_smallest_images_are_taken(name, size):
    definition = define_model(name, height=size, width=size, channels=1, classes=2)
    assert logits_shape(definition, 1, size, size, 1).shape == (1, 2)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("resnet19", "the nearest is 'resnet1"), ("cnn-28", "the nearest is 'cnn28'"), ("zzz", "known: cnn28, rnn28, ")],
)
def test_an_unknown_name_is_refused_with_the_nearest(name, hint):
    with pytest.raises(UserError) as raised:
        model_entry(name)
    assert str(raised.value).startswith(f"model.name is '{name}'; there is no such model; {hint}")


# The input of the head


# One of each class of modules.
EMBEDDED = (
    *("cnn28", "rnn28", "resnet18_cifar", "convnext_atto", "tf_efficientnet_b0", "mobilenetv3_small_100"),
    *("speednet", "gru", "lru", "crnn", "rglru2d_tiny"),
)


def module_of(build):
    return module_of(build.func) if isinstance(build, partial) else build


def test_one_model_of_each_class_is_embedded_here():
    assert {module_of(MODELS[name].build) for name in EMBEDDED} == {module_of(one.build) for one in MODELS.values()}


@pytest.mark.parametrize("name", EMBEDDED)
def test_logits_are_the_dense_head_on_what_the_model_embeds(name):
    definition = define_model(name, height=32, width=32, channels=1, classes=3)
    rng = np.random.default_rng(0)
    params = {path: rng.normal(0, 0.1, leaf.shape).astype(np.float32) for path, leaf in definition.params.items()}
    stats = {path: rng.uniform(1, 2, leaf.shape).astype(np.float32) for path, leaf in definition.stats.items()}
    # Sequences that end early, where the model takes them: padding must be as absent in the features as in the logits.
    lengths = jnp.array([32, 7], jnp.int32) if definition.takes_lengths else None
    images = images_of(1, size=32, batch=2)
    logits, features = jax.jit(
        lambda p, s: (definition.apply(p, s, images, lengths=lengths)[0], definition.embed(p, s, images, lengths))
    )(params, stats)
    assert features.shape == (2, params["head/kernel"].shape[0])
    assert np.ptp(features) > 0
    bias = params.get("head/bias", 0)
    np.testing.assert_allclose(features @ params["head/kernel"] + bias, logits, rtol=1e-4, atol=1e-5)
    if model_entry(name).stages:
        from_maps = jax.jit(lambda p, s: definition.classify_features(p, s, definition.features(p, s, images)[-1]))
        np.testing.assert_allclose(from_maps(params, stats), logits, rtol=1e-4, atol=1e-5)


# Numbers


def images_of(channels: int, size: int = 28, batch: int = 4) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, size, size, channels)), jnp.float32)


def test_cnn28_is_two_convolutions_with_relu_and_pooling_and_two_dense_layers():
    definition = define_model("cnn28", height=28, width=28, channels=1, classes=10)
    p, _ = jax.jit(definition.init)(jax.random.key(0))
    p = {path: a + 0.1 if path.endswith("bias") else a for path, a in p.items()}
    x = images_of(1)

    def layer(p, x, name):
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, p[f"{name}/kernel"], (1, 1), "VALID", dimension_numbers=layout)
        y = jnp.maximum(y + p[f"{name}/bias"], 0)
        return jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    @jax.jit
    def both(p, x):
        y = layer(p, layer(p, x, "conv1"), "conv2").reshape(4, -1)
        y = jnp.maximum(y @ p["dense/kernel"] + p["dense/bias"], 0)
        return definition.apply(p, {}, x)[0], y @ p["head/kernel"] + p["head/bias"]

    found, expected = both(p, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "activation"), [("rnn28", np.tanh), ("irnn28", lambda x: np.maximum(x, 0))])
def test_the_recurrent_networks_read_the_rows_from_the_top(name, activation):
    definition = define_model(name, height=28, width=28, channels=1, classes=10)
    params, stats = jax.jit(definition.init)(jax.random.key(0))
    p = {path: np.asarray(array, np.float64) for path, array in params.items()}
    x = np.asarray(images_of(1), np.float64)[..., 0] / 10
    h = np.zeros((4, 32))
    for row in range(28):
        h = activation(x[:, row] @ p["inputs/kernel"] + p["inputs/bias"] + h @ p["recurrent"])
    expected = h @ p["head/kernel"] + p["head/bias"]
    found, _ = jax.jit(lambda p, x: definition.apply(p, stats, x))(params, images_of(1) / 10)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_recurrent_weights_start_orthogonal_or_as_the_identity():
    start = {n: define_model(n, height=28, width=28, channels=1, classes=10) for n in ("rnn28", "irnn28")}
    tanh, relu = (np.asarray(d.init(jax.random.key(0))[0]["recurrent"]) for d in start.values())
    np.testing.assert_allclose(tanh @ tanh.T, np.eye(32), atol=1e-5)
    assert np.array_equal(relu, np.eye(32))


# Thin networks of stages: the same code, compiled in a second.


THIN_STAGES = (
    Stage(Single, 4, (1,)),
    Stage(Fused, 8, (2,), stride=2),
    Stage(Inverted, 8, (1, 2), size=5, stride=2, squeeze=efficientnet.squeeze),
    Stage(Inverted, 12, (2, 2), stride=2),
)
THIN_SWISH_STAGES = (
    Stage(Inverted, 16, (1,), act="relu"),
    Stage(Inverted, 8, (2, 3), stride=2, act="hard_swish", squeeze=mobilenet.squeeze),
    Stage(Inverted, 12, (2,), size=5, stride=2, act="hard_swish", squeeze=mobilenet.squeeze),
    Stage(Single, 24, (1,), size=1, act="hard_swish"),
)


def thin(kind, **options):
    """A network of few channels for images of 32 pixels: `basic` or `bottlenecks` (ResNet), `convnext`, `efficientnet`
    with every kind of block, or `mobilenet`."""
    common = {"channels": 3, "classes": 7, "dtype": jnp.float32} | options

    def build(rngs):
        if kind == "convnext":
            return ConvNeXt((1, 1, 2, 1), (4, 8, 12, 16), **common, rngs=rngs)
        if kind == "efficientnet":
            return EfficientNet(4, THIN_STAGES, 16, style="tensorflow", **common, rngs=rngs)
        if kind == "mobilenet":
            return MobileNetV3(16, THIN_SWISH_STAGES, 16, **common, rngs=rngs)
        block = Bottleneck if kind == "bottlenecks" else BasicBlock
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(resnet, "STAGE_WIDTHS", (4, 8, 12, 16))
            return ResNet(block, (1, 1, 1, 1), **common, rngs=rngs)

    return ModelDef.of(build)


def some_weights(definition):
    """Weights of the usual size, and statistics, without compiling a start: a second less."""
    rng = np.random.default_rng(0)

    def drawn(leaf):
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.1
        return (rng.normal(size=leaf.shape) * scale + (len(leaf.shape) < 2)).astype(np.float32)

    return jax.tree.map(drawn, definition.params), jax.tree.map(lambda leaf: jnp.ones(leaf.shape), definition.stats)


@pytest.mark.parametrize("kind", ["basic", "bottlenecks", "convnext", "efficientnet", "mobilenet"])
def test_a_training_pass_gives_finite_logits_that_differ_and_statistics_of_every_normalisation(kind):
    definition = thin(kind)
    params, stats = some_weights(definition)
    logits, found = jax.jit(lambda p, x: definition.apply(p, stats, x, TrainingPass()))(params, images_of(3, 32))
    assert logits.shape == (4, 7)
    assert np.isfinite(logits).all()
    assert np.asarray(logits).std(0).min() > 1e-3
    assert set(found) == set(definition.stats)
    assert not any(np.array_equal(found[path], stats[path]) for path in stats)


def test_the_stem_is_normalisation_then_relu_then_pooling_whatever_the_sign_of_a_scale():
    model = thin("basic")
    params, stats = some_weights(model)
    params["bn1/scale"] = np.float32([1, -2, 0, 0.5])
    network = nnx.merge(model.graph, _tree(params), _tree(stats))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 8, 8, 4)), jnp.float32)
    for training in (None, TrainingPass(), TrainingPass(group_size=2)):
        plain = max_pool_3x3_stride_2(nnx.relu(network.bn1(x, training)))
        np.testing.assert_allclose(network._stem(x, training), plain, rtol=1e-5, atol=1e-6)


def _tree(arrays):
    """Flat paths as nested dicts, with numbers for the children of lists."""
    return nnx.from_flat_state(
        [(tuple(int(p) if p.isdecimal() else p for p in path.split("/")), jnp.asarray(a)) for path, a in arrays.items()]
    )


@pytest.mark.system
@pytest.mark.parametrize("group_size", [None, 4])
def test_bottlenecks_compute_the_same_in_the_way_of_a_tpu(group_size):
    model = thin("bottlenecks")
    params, stats = some_weights(model)
    # Large enough for variances of more than two numbers in the last stage.
    images = images_of(3, 64, batch=8)
    training = TrainingPass(group_size=group_size, group_a_device=True)

    def gradient(platform):
        def loss(params):
            with compiling_for(platform):
                logits, found = model.apply(params, stats, images, training)
            return jnp.sum(logits**2), (logits, found)

        return jax.grad(loss, has_aux=True)

    found, expected = (jax.jit(gradient(platform))(params) for platform in ("tpu", "cpu"))
    # Gradients of what normalisation cancels are noise around 0: they are measured by the largest.
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected[0]))
    for some, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(some, other, rtol=1e-3, atol=1e-5 * largest)


def test_resnet18_has_a_mean_and_a_variance_for_each_of_its_20_convolutions():
    definition = customary_model("resnet18")
    kernels = [path for path, leaf in definition.params.items() if len(leaf.shape) == 4]
    assert len(kernels) == 20
    assert len(definition.stats) == 2 * 20
    assert "stages/0/1/conv1/kernel" in kernels
    assert "stages/1/0/shortcut/conv/kernel" in kernels


@pytest.mark.parametrize(("block", "last"), [(BasicBlock, "bn2"), (Bottleneck, "bn3")])
def test_residual_blocks_start_as_their_shortcut(block, last):
    module = block(16, 16, 1, Dropout(0, 0), dtype=jnp.float32, rngs=nnx.Rngs(0))
    zero = [path for path, array in flat(module).items() if path.endswith("scale") and not np.asarray(array).any()]
    assert zero == [f"{last}/scale"]
    x = jnp.abs(images_of(16, 4))
    np.testing.assert_array_equal(module(x, TrainingPass()), x)


@pytest.mark.parametrize(
    ("module", "deviation"),
    [
        # Of the fan-out, as He et al. do with ReLU.
        (lambda **options: BasicBlock(64, 64, 1, Dropout(0, 0), **options), lambda size, outputs: 2 / size / outputs),
        # Truncated at two deviations.
        (lambda **options: convnext.Block(64, Dropout(0, 0), **options), lambda size, outputs: 0.0176**2),
    ],
    ids=["resnet", "convnext"],
)
def test_kernels_start_with_the_published_variance(module, deviation):
    kernels = {path: a for path, a in flat(module(dtype=jnp.float32, rngs=nnx.Rngs(0))).items() if a.ndim > 1}
    assert len(kernels) >= 2
    for path, kernel in kernels.items():
        expected = np.sqrt(deviation(np.prod(kernel.shape[:-2]), kernel.shape[-1]))
        assert np.asarray(kernel).std() == pytest.approx(expected, rel=0.05), path


def test_a_convnext_block_is_that_of_numpy():
    block = convnext.Block(3, Dropout(0, 0), dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert block.scale[...].tolist() == [np.float32(1e-6)] * 3
    block.scale[...] = jnp.array([1.0, -2.0, 0.5])
    x = np.asarray(images_of(3, 4))
    p = {path: np.asarray(array, np.float64) for path, array in flat(block).items()}
    padded = np.pad(x.astype(np.float64), ((0, 0), (3, 3), (3, 3), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), (1, 2))
    y = np.einsum("bijcuv,uvc->bijc", windows, p["conv/kernel"][:, :, 0]) + p["conv/bias"]
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6) * p["norm/scale"] + p["norm/bias"]
    y = y @ p["expand/kernel"] + p["expand/bias"]
    y = 0.5 * y * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
    y = (y @ p["project/kernel"] + p["project/bias"]) * p["scale"]
    np.testing.assert_allclose(block(jnp.asarray(x)), x + y, rtol=1e-5, atol=1e-5)


def test_an_inverted_block_is_that_of_numpy():
    stage = Stage(Inverted, 3, (4,), act="hard_swish", squeeze=mobilenet.squeeze)
    (numbers,) = plan_of(3, [stage], 1).blocks
    block = Inverted(numbers, Dropout(0, 0), style="tensorflow", dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert isinstance(block.squeeze, SqueezeExcite)
    block.squeeze.reduce.bias[...] = jnp.linspace(-0.5, 0.5, 8)
    block.project.bn.mean[...], block.project.bn.var[...] = jnp.array([0.1, -0.2, 0.3]), jnp.array([0.01, 0.2, 2])
    x = np.asarray(images_of(3, 5))
    p = {path: np.asarray(array, np.float64) for path, array in flat(block).items()}

    def hard_sigmoid(x):
        return np.clip(x / 6 + 0.5, 0, 1)

    def activated(x):
        # Statistics are as at the start.
        x = x / np.sqrt(1 + 1e-3)
        return x * hard_sigmoid(x)

    y = activated(x @ p["expand/conv/kernel"][0, 0])
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (1, 2))
    y = activated(np.einsum("bijcuv,uvc->bijc", windows, p["depthwise/conv/kernel"][:, :, 0]))
    gate = np.maximum(y.mean((1, 2)) @ p["squeeze/reduce/kernel"] + p["squeeze/reduce/bias"], 0)
    gate = hard_sigmoid(gate @ p["squeeze/expand/kernel"] + p["squeeze/expand/bias"])
    y = (y * gate[:, None, None]) @ p["project/conv/kernel"][0, 0]
    y = (y - [0.1, -0.2, 0.3]) / np.sqrt(np.array([0.01, 0.2, 2]) + 1e-3)
    np.testing.assert_allclose(block(jnp.asarray(x)), x + y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["efficientnet", "mobilenet"])
def test_odd_images_give_maps_of_rounded_up_sizes_and_teach_every_weight(kind):
    definition = thin(kind)
    params, stats = some_weights(definition)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 33, 47, 3)), jnp.float32)
    sizes = [one.shape[1:3] for one in jax.eval_shape(lambda x: definition.features(params, stats, x), images)]
    assert sizes == [(17, 24), (9, 12), (5, 6), (3, 3)][: len(sizes)]
    assert len(sizes) == {"efficientnet": 4, "mobilenet": 3}[kind]

    def loss(params):
        return (definition.apply(params, stats, images, TrainingPass())[0] ** 2).sum()

    for path, grads in jax.jit(jax.grad(loss))(params).items():
        assert np.isfinite(grads).all(), path
        # What follows some biases is normalised, so that they have no effect.
        assert np.abs(grads).max() > 1e-4 or path.endswith("bias"), path


@pytest.mark.parametrize(
    ("between", "squeezed"), [(16, 8), (72, 24), (96, 24), (120, 32), (144, 40), (240, 64), (672, 168), (960, 240)]
)
def test_mobilenet_squeezes_to_multiples_of_eight_and_no_less_than_nine_tenths_of_a_quarter(between, squeezed):
    layer = mobilenet.squeeze(1, between)(between, dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert layer.reduce.kernel.shape == (between, squeezed)


def flat(module):
    leaves, _ = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    return {"/".join(str(entry.key) for entry in path): leaf for path, leaf in leaves}


# Options


NETWORKS = "resnet", "resnext", "wide_resnet", "convnext", "efficientnet", "tf_", "mobilenet"
STAGED = ", ".join(name for name in COUNTS if name.startswith(NETWORKS))
SEQUENCER = "sequencer2d_s, sequencer2d_m, sequencer2d_l, rglru2d_s, rglru2d_tiny"
LINEAR = "lru, mingru, minlstm, rglru"
STEPWISE = "rnn, irnn, gru, lstm"


@pytest.mark.parametrize(
    ("name", "option", "value", "having"),
    [
        ("rnn28", "dropout", 0.5, f"cnn28, {STAGED}, {STEPWISE}, {LINEAR}, crnn, {SEQUENCER}"),
        ("rnn28", "drop_path", 0.5, f"{STAGED}, {SEQUENCER}"),
        ("lstm", "drop_path", 0.5, f"{STAGED}, {SEQUENCER}"),
        ("cnn28", "remat", ("none",), f"{STAGED}, {SEQUENCER}"),
        ("rnn28", "read", "columns", f"{STEPWISE}, {LINEAR}, crnn"),
        ("crnn", "patch", 2, f"{STEPWISE}, {LINEAR}"),
        ("irnn28", "hidden", 64, f"{STEPWISE}, {LINEAR}, crnn"),
        ("cnn28", "layers", 2, f"{STEPWISE}, {LINEAR}, crnn"),
        ("crnn", "bidirectional", False, f"{STEPWISE}, {LINEAR}"),
        ("lru", "truncate", 10, STEPWISE),
        ("rglru", "chunk", 4, STEPWISE),
        ("gru", "form", "parallel", f"lstm, {LINEAR}"),
    ],
)
def test_an_option_that_a_model_does_not_have_is_refused_with_those_that_have_it(name, option, value, having):
    with pytest.raises(UserError) as raised:
        define_model(name, height=28, width=28, channels=1, classes=10, **{option: value})
    assert str(raised.value) == f"model.{option} has no effect with {name}; models that have it: {having}"


def test_an_order_of_reading_that_a_model_does_not_have_is_refused():
    with pytest.raises(UserError) as raised:
        define_model("crnn", height=28, width=28, channels=1, classes=10, read="pixels")
    assert str(raised.value) == "model.read is 'pixels'; crnn reads rows or columns"


@pytest.mark.parametrize("count", [1, 3, 5])
def test_remat_speaks_of_every_stage(count):
    with pytest.raises(UserError) as raised:
        define_model("resnet18", height=32, width=32, channels=3, classes=7, remat=("inputs",) * count)
    assert str(raised.value) == f"model.remat has {count} entries; resnet18 has 4 stages: write one for each"


@pytest.mark.parametrize("kind", ["basic", "convnext", "efficientnet"])
def test_stochastic_depth_rises_linearly_and_no_two_layers_drop_alike(kind):
    module = nnx.eval_shape(lambda: thin(kind, dropout=0.25, drop_path=0.4).build(jax.random.key(0)))
    drops = [node for _, node in nnx.iter_graph(module) if isinstance(node, Dropout)]
    rates = sorted(drop.rate for drop in drops if drop.whole)
    np.testing.assert_allclose(rates, np.linspace(0, 0.4, len(rates)), rtol=1e-9)
    assert [drop.rate for drop in drops if not drop.whole] == [0.25]
    assert len({drop.place for drop in drops}) == len(drops)


@pytest.mark.system
@pytest.mark.parametrize("option", ["dropout", "drop_path"])
@pytest.mark.parametrize("kind", ["basic", "convnext", "efficientnet"])
def test_what_is_dropped_is_dropped_in_training_only(kind, option):
    models = thin(kind), thin(kind, **{option: 0.5})
    params, stats = some_weights(models[0])

    @jax.jit
    def all_of(params, x):
        passes = None, TrainingPass(), TrainingPass(KEYS)
        return [[model.apply(params, stats, x, training)[0] for model in models] for training in passes]

    predicted, keyless, trained = all_of(params, images_of(3, 32))
    for plain, dropping in (predicted, keyless):
        np.testing.assert_allclose(dropping, plain, rtol=1e-5, atol=1e-5)
    assert np.abs(trained[0] - trained[1]).max() > 0.01


@pytest.mark.system
@pytest.mark.parametrize("kind", ["basic", "convnext", "efficientnet"])
def test_remat_of_stages_changes_no_number(kind):
    policies = {}, {"remat": ("inputs", "none", "products", "none")}
    models = [thin(kind, drop_path=0.5, **options) for options in policies]
    params, stats = some_weights(models[0])

    def gradient(model):
        def loss(params):
            logits, found = model.apply(params, stats, images_of(3, 32), TrainingPass(KEYS))
            return jnp.sum(logits**2), (logits, found)

        return jax.grad(loss, has_aux=True)(params)

    found, expected = jax.jit(lambda params: [gradient(model) for model in models])(params)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected[0]))
    for some, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(some, other, rtol=1e-4, atol=max(1e-4 * np.abs(other).max(), 1e-6 * largest))
