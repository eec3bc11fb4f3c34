import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pcls.config.schema import LrScale, OptimizerSection
from pcls.errors import UserError
from pcls.training.optimizers import learning_rate, lr_scales, make_optimizer

LR = 0.25


def some_params():
    rng = np.random.default_rng(1)
    return {
        "body/kernel": rng.normal(size=(3, 2)).astype(np.float32),
        "body/bias": rng.normal(size=2).astype(np.float32),
        "head/kernel": rng.normal(size=(2, 4)).astype(np.float32),
    }


def some_grads(step):
    rng = np.random.default_rng(100 + step)
    return {path: rng.normal(size=p.shape).astype(np.float32) for path, p in some_params().items()}


def after_steps(section, count=3):
    """Parameters after some steps at a constant rate."""
    params = jax.tree.map(jnp.asarray, some_params())
    optimizer = make_optimizer(section, optax.constant_schedule(section.lr), params)
    state = optimizer.init(params)
    for step in range(count):
        updates, state = optimizer.update(some_grads(step), state, params)
        params = optax.apply_updates(params, updates)
    return params


def numpy_adam(decay=0.0, count=3):
    params = {path: p.astype(np.float64) for path, p in some_params().items()}
    m = {path: np.zeros_like(p) for path, p in params.items()}
    v = {path: np.zeros_like(p) for path, p in params.items()}
    for step in range(count):
        for path, grad in some_grads(step).items():
            m[path] = 0.9 * m[path] + 0.1 * grad
            v[path] = 0.999 * v[path] + 0.001 * grad.astype(np.float64) ** 2
            update = m[path] / (1 - 0.9 ** (step + 1)) / (np.sqrt(v[path] / (1 - 0.999 ** (step + 1))) + 1e-8)
            if params[path].ndim > 1:
                update = update + decay * params[path]
            params[path] = params[path] - LR * update
    return params


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        # 1 - 0.999**step has few digits in float32.
        np.testing.assert_allclose(found[path], value, rtol=2e-5, atol=1e-5, err_msg=path)


def test_the_rate_rises_linearly_then_falls_as_a_cosine_to_0():
    schedule = learning_rate(OptimizerSection(lr=0.4), warmup_steps=4, steps=12)
    expected = {0: 0.0, 2: 0.2, 4: 0.4, 6: 0.2 * (1 + np.cos(np.pi / 4)), 8: 0.2, 12: 0.0}
    np.testing.assert_allclose([float(schedule(step)) for step in expected], list(expected.values()), atol=1e-7)


def test_without_warm_up_the_first_rate_is_the_peak():
    schedule = learning_rate(OptimizerSection(lr=0.4), warmup_steps=0, steps=10)
    np.testing.assert_allclose([float(schedule(0)), float(schedule(5))], [0.4, 0.2], rtol=1e-6)


def test_a_constant_rate_stays_at_the_peak_after_the_warm_up():
    schedule = learning_rate(OptimizerSection(lr=0.4, schedule="constant"), warmup_steps=2, steps=10)
    np.testing.assert_allclose([float(schedule(step)) for step in (1, 2, 10)], [0.2, 0.4, 0.4], rtol=1e-6)


def test_adam_takes_the_steps_of_its_paper():
    assert_close(after_steps(OptimizerSection(name="adam", lr=LR)), numpy_adam())


def test_adamw_decays_kernels_and_leaves_biases_alone():
    found = after_steps(OptimizerSection(name="adamw", lr=LR, weight_decay=0.1))
    assert_close(found, numpy_adam(decay=0.1))
    np.testing.assert_array_equal(found["body/bias"], after_steps(OptimizerSection(name="adam", lr=LR))["body/bias"])


def test_sgd_takes_nesterov_steps():
    params = {path: p.astype(np.float64) for path, p in some_params().items()}
    velocity = {path: np.zeros_like(p) for path, p in params.items()}
    for step in range(3):
        for path, grad in some_grads(step).items():
            velocity[path] = 0.8 * velocity[path] + grad
            params[path] = params[path] - LR * (grad + 0.8 * velocity[path])
    assert_close(after_steps(OptimizerSection(name="sgd", lr=LR, momentum=0.8)), params)


def test_a_gradient_above_the_limit_is_clipped_by_its_global_norm():
    grads = some_grads(0)
    norm = np.sqrt(sum((grad.astype(np.float64) ** 2).sum() for grad in grads.values()))
    found = after_steps(OptimizerSection(name="sgd", lr=LR, momentum=0.0, clip_norm=0.5), count=1)
    assert norm > 0.5
    assert_close(found, {path: p - LR * grads[path] * (0.5 / norm) for path, p in some_params().items()})


def test_the_first_rule_that_matches_gives_the_scale():
    rules = [LrScale(match="^head/", scale=1.0), LrScale(match="kernel", scale=0.5)]
    assert lr_scales(rules, some_params()) == {"body/kernel": 0.5, "body/bias": 1.0, "head/kernel": 1.0}


@pytest.mark.parametrize(("match", "words"), [("^haed/", "matches no parameter"), ("(", "no regular expression")])
def test_a_rule_that_does_nothing_is_an_error(match, words):
    section = OptimizerSection(lr_scale=(LrScale(match=match, scale=0.5),))
    with pytest.raises(UserError, match=words) as caught:
        make_optimizer(section, optax.constant_schedule(LR), some_params())
    assert repr(match) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scale_0_keeps_parameters_bit_for_bit_in_spite_of_weight_decay():
    section = OptimizerSection(name="adamw", lr=LR, weight_decay=0.1, lr_scale=(LrScale(match="^body/", scale=0.0),))
    found = after_steps(section)
    np.testing.assert_array_equal(found["body/kernel"], some_params()["body/kernel"])
    np.testing.assert_array_equal(found["body/bias"], some_params()["body/bias"])
    assert_close({"head/kernel": found["head/kernel"]}, {"head/kernel": numpy_adam(decay=0.1)["head/kernel"]})


def test_a_scale_multiplies_the_whole_step():
    section = OptimizerSection(name="sgd", lr=LR, lr_scale=(LrScale(match="^body/", scale=0.25),))
    slower = OptimizerSection(name="sgd", lr=LR * 0.25)
    np.testing.assert_allclose(after_steps(section)["body/kernel"], after_steps(slower)["body/kernel"], rtol=1e-6)
