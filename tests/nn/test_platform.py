"""What kind of device a trace is meant for."""

import jax
import jax.numpy as jnp
import pytest

from pcls.nn.platform import compiling_for, target_platform
from pcls.nn.pooling import max_pool_3x3_stride_2


def test_without_a_word_it_is_this_machines():
    assert target_platform() == jax.default_backend() == "cpu"


@pytest.mark.parametrize(
    ("named", "target"), [("tpu", "tpu"), ("gpu", "gpu"), ("cuda", "gpu"), ("rocm", "gpu"), ("cpu", "cpu")]
)
def test_inside_it_is_the_one_named(named, target):
    with compiling_for(named):
        assert target_platform() == target
    assert target_platform() == "cpu"


def test_the_inner_one_holds_and_an_error_ends_it():
    with pytest.raises(ZeroDivisionError), compiling_for("tpu"):
        with compiling_for("cpu"):
            assert target_platform() == "cpu"
        assert target_platform() == "tpu"
        _ = 1 / 0
    assert target_platform() == "cpu"


def test_a_layer_is_traced_for_the_device_that_is_named():
    def primitives(platform):
        with compiling_for(platform):
            trace = jax.make_jaxpr(lambda x: max_pool_3x3_stride_2(x))(jnp.zeros((1, 4, 4, 1)))
        return {str(equation.primitive) for equation in trace.eqns}

    assert "reduce_window_max" in primitives("tpu")
    assert "reduce_window_max" not in primitives("cpu")
