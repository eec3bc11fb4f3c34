import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.compression.prune import _ladder, prune, without_channels
from pcls.errors import UserError
from pcls.models import efficientnet, mobilenet
from pcls.models.channels import channels_of
from pcls.models.efficientnet import EfficientNet
from pcls.models.inverted import Fused, Inverted, Single, Stage
from pcls.models.mobilenet import MobileNetV3
from pcls.models.registry import MODELS, define_model
from pcls.nn.flops import image_costs, layer_flops
from pcls.nn.module import ModelDef
from pcls.nn.platform import compiling_for

# Few channels; together they have every kind of block.
BLOCKS = (
    Stage(Single, 16, (1,)),
    Stage(Fused, 16, (2, 1), stride=2),
    Stage(Inverted, 24, (1, 2), size=5, stride=2, squeeze=efficientnet.squeeze),
    Stage(Inverted, 32, (3,)),
)
SWISH_BLOCKS = (
    Stage(Inverted, 16, (1,), act="relu"),
    Stage(Inverted, 24, (72 / 16, 3), stride=2, act="hard_swish", squeeze=mobilenet.squeeze),
    Stage(Single, 48, (1,), size=1, act="hard_swish"),
)
THIN = {
    "efficientnet": partial(EfficientNet, 16, BLOCKS, 48, style="tensorflow"),
    "mobilenet": partial(MobileNetV3, 16, SWISH_BLOCKS, 32),
}
NETWORKS = {
    "cnn28": ((12, 12, 1), {"widths": (8, 16, 16)}),
    "cnn28, no hidden layer": ((12, 12, 1), {"widths": (8, 16)}),
    "resnet18": ((32, 32, 3), {"widths": (16, 16, 24, 32), "pool": "catavgmax"}),
    "resnet50": ((32, 32, 1), {"widths": (16, 32, 32, 48, 64)}),
    "resnet18d": ((32, 32, 1), {"widths": (48, 48, 64, 96)}),
    "efficientnet": ((32, 32, 3), {"pool": "catavgmax"}),
    "mobilenet": ((32, 32, 1), {"pool": "catavgmax"}),
}


def defined(name: str, widths=None):
    shape, options = NETWORKS[name]
    own = options if widths is None else options | {"widths": widths}
    if name in THIN:
        build = partial(THIN[name], channels=shape[-1], classes=5, dtype=jnp.float32, **own)
        return ModelDef.of(lambda rngs: build(rngs=rngs))
    size = dict(zip(("height", "width", "channels"), shape, strict=True))
    return define_model(name.partition(",")[0], **size, classes=5, **own)


def drawn(definition):
    """Weights and statistics of which no two are alike, nor any scale or mean as it starts."""
    rng = np.random.default_rng(0)

    def array(path, leaf):
        if path.endswith("/var"):
            return rng.uniform(0.5, 2, leaf.shape).astype(np.float32)
        scale = np.sqrt(2 / math.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.5
        return (rng.normal(size=leaf.shape) * scale + path.endswith("/scale")).astype(np.float32)

    return tuple(
        {path: array(path, leaf) for path, leaf in own.items()} for own in (definition.params, definition.stats)
    )


def flops_of(definition, name: str) -> int:
    return image_costs(definition, NETWORKS[name][0], jnp.dtype("float32"))[0]


def compiled(definition, images):
    """From parameters and statistics to logits, by the plain convolutions: others depend on the width."""

    @jax.jit
    def apply(params, stats):
        with compiling_for("cuda"):
            return definition.apply(params, stats, images)[0]

    return lambda *arrays: np.asarray(apply(*arrays))


def zeroed(params, groups, kept):
    """The whole network, in which nothing comes out of the channels that are not kept."""
    params = dict(params)
    for group, places in zip(groups, kept, strict=True):
        for layer, norm in group.makers.items():
            for path in (f"{layer}/kernel", f"{layer}/bias", f"{norm}/scale", f"{norm}/bias"):
                if path in params:
                    mask = np.zeros(params[path].shape[-1], np.float32)
                    mask[places] = 1
                    params[path] = params[path] * mask
    return params


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_left_is_the_network_with_the_other_channels_at_zero(name):
    definition = defined(name)
    params, stats = drawn(definition)
    found = prune(definition, params, stats, NETWORKS[name][0], flops=0.5)
    narrow = defined(name, found.widths)
    assert {path: array.shape for path, array in found.params.items()} == {p: a.shape for p, a in narrow.params.items()}
    assert {path: array.shape for path, array in found.stats.items()} == {p: a.shape for p, a in narrow.stats.items()}
    share = flops_of(narrow, name) / flops_of(definition, name)
    assert 0.44 < share <= 0.5, "a few percent below what was asked"
    assert narrow.parameter_count == sum(array.size for array in found.params.values()) < definition.parameter_count
    images = jax.random.normal(jax.random.key(1), (2, *NETWORKS[name][0]))
    logits = compiled(definition, images)
    whole = logits(zeroed(params, channels_of(definition), found.kept), stats)
    assert np.abs(whole).max() > 0.1
    np.testing.assert_allclose(compiled(narrow, images)(found.params, found.stats), whole, rtol=1e-5, atol=1e-5)
    # It is another function than the whole network.
    assert np.abs(logits(params, stats) - whole).max() > 0.01


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"cnn28, no hidden layer"}))
def test_every_layer_is_counted_as_the_whole_is(name):
    definition = defined(name)
    layers = layer_flops(definition, NETWORKS[name][0])
    assert layers.keys() == {path.rpartition("/")[0] for path in definition.params if path.endswith("/kernel")}
    assert sum(layers.values()) == flops_of(definition, name)


def test_channels_are_in_the_order_of_the_option_and_count_as_it_says():
    for name in NETWORKS:
        definition = defined(name)
        groups = channels_of(definition)
        if name not in THIN:
            assert len(groups) == max(MODELS[name.partition(",")[0]].widths.counts[-1] - ("no hidden" in name), 2)
        counts = [definition.params[f"{next(iter(group.makers))}/kernel"].shape[-1] for group in groups]
        assert defined(name, tuple(counts)).params == definition.params
        for group in groups:
            sizes = {definition.params[f"{layer}/kernel"].shape[-1] for layer in group.makers}
            assert len(sizes) == 1 and group.readers


def test_channels_that_do_nothing_go_first_and_blocks_of_a_stage_are_looked_at_together():
    definition = defined("resnet18")
    params, stats = drawn(definition)
    stream = channels_of(definition)[0]
    assert list(stream.makers.items()) == [
        ("conv1", "bn1"),
        *((f"stages/0/{n}/conv2", f"stages/0/{n}/bn2") for n in (0, 1)),
    ]
    # In one layer alone the last channels are nothing; in all of them the first.
    params["stages/0/1/bn2/scale"][-4:] = 0
    for norm in stream.makers.values():
        params[f"{norm}/scale"][:4] = 0
    for score in ("l2", "l1", "scale"):
        kept = prune(definition, params, stats, (32, 32, 3), flops=0.8, score=score).kept[0]
        assert not set(kept) & {0, 1, 2, 3}, score
        assert set(kept) & {12, 13, 14, 15}, score


def test_channels_of_inverted_blocks_are_those_before_and_after_the_depthwise_convolution_and_of_the_gates():
    groups = channels_of(defined("mobilenet"))
    stem, second, *_ = groups
    # The first block has no channels of its own, and is added to the stem's.
    assert list(stem.makers) == ["stem/conv", "stages/0/0/depthwise/conv", "stages/0/0/project/conv"]
    assert stem.readers == ["stages/0/0/project/conv", "stages/1/0/expand/conv"]
    assert list(second.makers) == ["stages/1/0/project/conv", "stages/1/1/project/conv"]
    within = next(group for group in groups if "stages/1/0/expand/conv" in group.makers)
    assert within.makers == {
        "stages/1/0/expand/conv": "stages/1/0/expand/bn",
        "stages/1/0/depthwise/conv": "stages/1/0/depthwise/bn",
        "stages/1/0/squeeze/expand": "",
    }
    assert within.readers == ["stages/1/0/squeeze/reduce", "stages/1/0/project/conv"]


def test_networks_of_inverted_blocks_are_made_of_their_widths():
    name = "mobilenetv3_small_100"
    size = {"height": 32, "width": 32, "channels": 3, "classes": 5}
    whole = define_model(name, **size)
    groups = channels_of(whole)
    counts = [whole.params[f"{next(iter(group.makers))}/kernel"].shape[-1] for group in groups]
    few, all_ = MODELS[name].widths.counts
    assert len(counts) == all_ and tuple(counts[:few]) == MODELS[name].widths.usual
    assert define_model(name, **size, widths=tuple(counts)).params == whole.params
    # Without those within its blocks they are as customary: six times what enters the last one.
    halved = define_model(name, **size, widths=tuple(count // 2 for count in counts[:few]))
    assert halved.params["stages/4/2/expand/conv/kernel"].shape == (1, 1, 48, 288)
    with pytest.raises(UserError, match=r"mobilenetv3_small_100 has 8 widths from its stem .*: write 8 or 18 numbers"):
        define_model(name, **size, widths=(16,))


def test_nothing_is_changed_where_all_channels_are_kept():
    definition = defined("resnet50")
    params, stats = drawn(definition)
    groups = channels_of(definition)
    whole = [np.arange(definition.params[f"{next(iter(group.makers))}/kernel"].shape[-1]) for group in groups]
    for found, before in zip(without_channels(params, stats, groups, whole), (params, stats), strict=True):
        assert all(np.array_equal(found[path], before[path]) for path in before)


def test_wide_layers_keep_multiples_of_32_and_narrow_ones_of_a_quarter():
    assert _ladder(256)[:4] == [256, 224, 192, 160]
    assert _ladder(100)[:4] == [100, 96, 80, 64]
    assert _ladder(64) == [64, 48, 40, 32, 24, 20, 16, 12, 10, 8, 6, 5, 4, 3, 2, 1]
    assert _ladder(1) == [1]
    for count in range(2, 600):
        ladder = _ladder(count)
        assert ladder[0] == count
        assert ladder[-1] == 1
        assert all(3 * more <= 4 * fewer + 4 and fewer < more for more, fewer in itertools.pairwise(ladder))


@pytest.mark.parametrize("name", ["rnn28", "lstm", "resnext50_32x4d", "convnext_atto"])
def test_networks_without_channels_of_their_own_are_refused(name):
    size = MODELS[name].min_size
    definition = define_model(name, height=max(size, 8), width=max(size, 8), channels=1, classes=3)
    with pytest.raises(UserError, match=r"cannot be pruned: .* recurrent") as caught:
        prune(definition, {}, {}, (size, size, 1), flops=0.5)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_reached_is_told():
    definition = defined("cnn28")
    with pytest.raises(UserError, match=r"with the fewest channels 0\.0.* are left; choose a larger share"):
        prune(definition, *drawn(definition), (12, 12, 1), flops=0.001)
    with pytest.raises(UserError, match="no scale of a BatchNorm follows conv1; choose --score l2 or l1"):
        prune(definition, *drawn(definition), (12, 12, 1), flops=0.5, score="scale")


@pytest.mark.parametrize("widths", [(16,), (16, 16, 16, 16, 8), (0, 1, 1, 1)])
def test_widths_that_a_residual_network_has_not_are_refused(widths):
    with pytest.raises(UserError, match=r"resnet18 has 4 stages, .*: write 4 or 12 numbers >= 1"):
        defined("resnet18", widths)
