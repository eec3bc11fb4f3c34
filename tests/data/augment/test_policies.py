"""What policies draw: which operations, how often, how strong."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.config.policy import parse_policy
from pcls.data.augment.operations import Op
from pcls.data.augment.policies import (
    AUGMIX_OPS,
    RAND_OPS,
    RAND_WEIGHTS,
    TRIVIAL_OPS,
    augmix_operations,
    changed,
    drawn_magnitude,
    mixture_of_chains,
    rand_operations,
    timm_strengths,
    trivial_operation,
    trivial_strengths,
)

IMAGES = 3000
KEYS = jax.random.split(jax.random.key(1), IMAGES)


@cache
def drawn(name, height=100, width=200):
    """Operations and arguments of many images, [images, layers]."""
    operations = jax.jit(jax.vmap(lambda key: rand_operations(key, parse_policy(name), height, width)))(KEYS)
    return np.asarray(operations.op), np.asarray(operations.argument)


def within(count, probability, trials):
    return abs(count - probability * trials) < 4.5 * math.sqrt(trials * probability * (1 - probability))


# As timm has them at magnitudes of its published recipes: 9 and 12 of the increasing operations, 7 of the others.
@pytest.mark.parametrize(
    ("increasing", "level", "expected"),
    [
        (
            True,
            0.9,
            {
                Op.ROTATE: 27.0,
                Op.SHEAR_X: 0.27,
                Op.SHEAR_Y: 0.27,
                Op.TRANSLATE_X: 81.0,
                Op.TRANSLATE_Y: 40.5,
                Op.POSTERIZE: 1.0,
                Op.SOLARIZE: 26.0,
                Op.SOLARIZE_ADD: 99.0,
                Op.COLOR: 1.81,
                Op.CONTRAST: 1.81,
                Op.BRIGHTNESS: 1.81,
                Op.SHARPNESS: 1.81,
            },
        ),
        (
            False,
            0.7,
            {
                Op.ROTATE: 21.0,
                Op.POSTERIZE: 2.0,
                Op.SOLARIZE: 179.0,
                Op.SOLARIZE_ADD: 77.0,
                Op.COLOR: 1.36,
                Op.BRIGHTNESS: 1.36,
            },
        ),
        (True, 1.2, {Op.ROTATE: 36.0, Op.POSTERIZE: 0.0, Op.SOLARIZE: 0.0, Op.SOLARIZE_ADD: 128.0, Op.COLOR: 2.08}),
        (False, 0.0, {Op.ROTATE: 0.0, Op.POSTERIZE: 0.0, Op.SOLARIZE: 0.0, Op.COLOR: 0.1}),
    ],
)
def test_a_strength_means_what_it_means_in_timm(increasing, level, expected):
    strengths = timm_strengths(increasing=increasing, across=90.0, along=45.0)
    for op, argument in expected.items():
        found = strengths[op](jnp.float32([level]), jnp.float32([1.0]))
        np.testing.assert_allclose(found, [argument], rtol=1e-6, atol=1e-6, err_msg=op.name)


def test_a_negative_sign_turns_back_and_weakens_but_never_below_a_tenth():
    strengths = timm_strengths(increasing=True, across=90.0, along=45.0)
    found = {op: float(strengths[op](jnp.float32(1.2), jnp.float32(-1))) for op in (Op.ROTATE, Op.COLOR)}
    assert found == {Op.ROTATE: -36.0, Op.COLOR: pytest.approx(0.1)}


def test_all_operations_are_as_likely_and_half_of_them_are_applied():
    ops, _ = drawn("rand-m9-mstd0.5-inc1")
    assert ops.shape == (IMAGES, 2)
    assert within((ops != Op.IDENTITY).sum(), 0.5, ops.size)
    for op in RAND_OPS:
        assert within((ops == op).sum(), 0.5 / 15, ops.size), op.name


def test_magnitudes_are_normal_around_m_within_their_limits():
    ops, arguments = drawn("rand-m9-mstd0.5-inc1")
    degrees = np.abs(arguments[ops == Op.ROTATE])
    # 3 degrees a magnitude; what is above 10 (2.3 % of them) is cut.
    assert degrees.max() == 30
    assert abs(np.median(degrees) - 27) < 0.5
    assert abs((degrees[degrees < 30]).std() - 1.45) < 0.3


def test_weighted_operations_come_by_their_weights_and_p_and_none_comes_twice():
    ops, _ = drawn("rand-m15-mmax12-n2-p0.8-mstd101-tweights")
    total = sum(RAND_WEIGHTS.values())
    for op, weight in RAND_WEIGHTS.items():
        assert within((ops[:, 0] == op).sum(), 0.8 * weight / total, IMAGES), op.name
    assert within((ops != Op.IDENTITY).sum(), 0.8, ops.size)
    assert ((ops[:, 0] != ops[:, 1]) | (ops[:, 0] == Op.IDENTITY)).all()


def test_an_infinite_deviation_is_uniform_below_m_and_cut_at_the_limit():
    ops, arguments = drawn("rand-m15-mmax12-n2-p0.8-mstd101-tweights")
    degrees = np.abs(arguments[ops == Op.ROTATE])
    assert degrees.max() == 36
    # Of 15 u, cut at 12, the mean is 7.2; a fifth is cut.
    assert abs(degrees.mean() - 21.6) < 4 * 11.6 / math.sqrt(len(degrees))
    assert within((degrees == 36).sum(), 0.2, len(degrees))


def test_magnitudes_beyond_10_need_a_higher_limit():
    found = [drawn_magnitude(KEYS[0], 15, 0, limit, (1,)).item() for limit in (10, 12, 20)]
    assert found == [10, 12, 15]


def test_translations_are_shares_of_the_width_and_the_height_in_both_directions():
    ops, arguments = drawn("rand-m15-mmax12-n2-p0.8-mstd101-tweights")
    for op, most in ((Op.TRANSLATE_X, 108), (Op.TRANSLATE_Y, 54)):
        pixels = arguments[ops == op]
        assert (pixels.min(), pixels.max()) == (pytest.approx(-most), pytest.approx(most))


def test_trivial_draws_one_operation_of_its_wide_ranges():
    operations = jax.jit(jax.vmap(trivial_operation))(KEYS)
    ops, arguments = np.asarray(operations.op), np.asarray(operations.argument)
    for op in TRIVIAL_OPS:
        assert within((ops == op).sum(), 1 / 14, IMAGES), op.name
    bounds = {op: (arguments[ops == op].min().item(), arguments[ops == op].max().item()) for op in trivial_strengths()}
    assert bounds == {
        **dict.fromkeys(
            (Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS), (pytest.approx(0.01), pytest.approx(1.99))
        ),
        Op.POSTERIZE: (2.0, 8.0),
        Op.SOLARIZE: (0.0, 255.0),
        Op.ROTATE: (-135.0, 135.0),
        Op.SHEAR_X: (pytest.approx(-0.99), pytest.approx(0.99)),
        Op.SHEAR_Y: (pytest.approx(-0.99), pytest.approx(0.99)),
        Op.TRANSLATE_X: (-32.0, 32.0),
        Op.TRANSLATE_Y: (-32.0, 32.0),
    }
    # 31 levels of each sign; 0 has two.
    assert len(set(arguments[ops == Op.ROTATE].tolist())) <= 61
    assert len(set(np.abs(arguments[ops == Op.ROTATE]).round(2).tolist())) == 31


def test_augmix_draws_chains_without_inversion_and_of_1_to_3_operations():
    policy = parse_policy("augmix-m5-w4")
    operations = jax.jit(jax.vmap(lambda key: augmix_operations(key, policy, 100, 100)))(KEYS)
    ops, degrees = np.asarray(operations.op), np.abs(np.asarray(operations.argument))
    assert ops.shape == (IMAGES, 4, 3)
    assert set(np.unique(ops).tolist()) - {Op.IDENTITY} == set(AUGMIX_OPS)
    # Uniform below m.
    assert 14.8 < degrees[ops == Op.ROTATE].max() <= 15
    depths = (ops != Op.IDENTITY).sum(-1)
    assert (ops[..., 0] != Op.IDENTITY).all()
    for depth in (1, 2, 3):
        assert within((depths == depth).sum(), 1 / 3, depths.size)


def test_a_depth_that_is_named_is_that_of_every_chain():
    shape = jax.eval_shape(lambda key: augmix_operations(key, parse_policy("augmix-w4-d2"), 100, 100), KEYS[0])
    assert shape.op.shape == shape.argument.shape == (4, 2)


def test_an_augmix_of_chains_that_change_nothing_is_the_image(monkeypatch):
    monkeypatch.setattr("pcls.data.augment.policies.one_after_the_other", lambda image, operations, fill: image)
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    policy = parse_policy("augmix-w4-d1")
    mixed = jax.jit(jax.vmap(lambda key: mixture_of_chains(image, key, policy, jnp.zeros(3))))(KEYS[:20])
    assert (np.asarray(mixed) == np.asarray(image)).all()


def test_an_augmix_lies_between_the_image_and_its_chains(monkeypatch):
    monkeypatch.setattr(
        "pcls.data.augment.policies.one_after_the_other", lambda image, operations, fill: jnp.full_like(image, 200)
    )
    image = jnp.full((1, 1, 3), 100, jnp.uint8)
    policy = parse_policy("augmix-w2-d1")
    mix = jax.jit(jax.vmap(lambda key: mixture_of_chains(image, key, policy, jnp.zeros(3))))
    mixed = np.asarray(mix(KEYS))[:, 0, 0, 0]
    # The mixture's share is uniform: 100 to 200, cut off to whole levels.
    assert mixed.min() >= 100 and mixed.max() <= 200
    assert abs(mixed.mean() - 149.5) < 4.5 * 29 / math.sqrt(IMAGES)


def changes(name):
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    return jax.vmap(lambda key: changed(image, key, parse_policy(name), jnp.zeros(3, jnp.uint8)))


def test_augmix_changes_most_images_and_each_in_its_own_way():
    found = np.asarray(jax.jit(changes("augmix-m9-w2-d2"))(KEYS[:64]))
    assert len({image.tobytes() for image in found}) > 40


@pytest.mark.parametrize("name", ["trivial", "rand-n3", "augmix"])
def test_a_policy_keeps_shape_and_type(name):
    assert jax.eval_shape(changes(name), KEYS[:5]) == jax.ShapeDtypeStruct((5, 16, 16, 3), np.uint8)
