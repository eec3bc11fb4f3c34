"""JAX programs as LiteRT files: what they compute, what their inputs are called, and what cannot be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pcls

pytest.importorskip("litert_converter", reason="pip install --no-deps litert-converter")
interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason="pip install 'pcls[litert]'")

from pcls.deliver.export_litert import to_litert  # noqa: E402

RNG = np.random.default_rng(0)


def runner(function, **arrays):
    """What runs the file of a function of arrays like these."""
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}
    return interpreter.Interpreter(model_content=to_litert(function, shapes)).get_signature_runner()


def drawn(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_inputs_are_told_apart_by_their_names():
    def function(later, earlier):
        return earlier.astype(jnp.float32) - 2 * later

    given = {"later": drawn(2, 3), "earlier": RNG.integers(0, 256, (2, 3)).astype(np.uint8)}
    run = runner(function, **given)
    assert sorted(run.get_input_details()) == ["earlier", "later"]
    assert list(run.get_output_details()) == ["logits"]
    np.testing.assert_allclose(run(**given)["logits"], function(**given), rtol=1e-6)


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 8), (2, 2)])
def test_convolutions_of_all_kinds(stride, groups):
    kernel, images = drawn(3, 3, 8 // groups, 16), drawn(1, 9, 7, 8)

    def function(images):
        layout = ("NHWC", "HWIO", "NHWC")
        maps = jax.lax.conv_general_dilated(
            images, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=layout, feature_group_count=groups
        )
        return jax.nn.silu(maps).mean((1, 2))

    np.testing.assert_allclose(runner(function, images=images)(images=images)["logits"], function(images), atol=1e-5)


def test_a_loop_over_time_is_its_steps():
    kernels = drawn(3, 5, 5)

    def function(sequences):
        return jax.lax.scan(lambda state, kernel: (jnp.tanh(state @ kernel), None), sequences, kernels)[0]

    given = drawn(1, 5)
    np.testing.assert_allclose(runner(function, sequences=given)(sequences=given)["logits"], function(given), atol=1e-6)


def test_what_cannot_be_translated_is_refused_in_a_line():
    shapes = {"images": jax.ShapeDtypeStruct((3, 3), jnp.float32)}
    with pytest.raises(pcls.UserError, match=r"^--to litert: its converter cannot translate this model \(.*--to onnx$"):
        to_litert(lambda images: jnp.linalg.cholesky(images @ images.T), shapes)


def test_the_signature_is_the_customary_one():
    content = to_litert(lambda images: images + 1, {"images": jax.ShapeDtypeStruct((1, 2), jnp.float32)})
    found = interpreter.Interpreter(model_content=content).get_signature_list()
    assert found == {"serving_default": {"inputs": ["images"], "outputs": ["logits"]}}
