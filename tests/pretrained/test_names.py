"""The keys and shapes of public weights, for every model that has names."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from pcls.errors import UserError
from pcls.models.convnext import ConvNeXt
from pcls.models.registry import customary_model
from pcls.nn.module import ModelDef
from pcls.pretrained.exchange import IGNORED, export_weights, foreign_shape, import_weights
from pcls.pretrained.names import TIMM, TORCHVISION, timm_names
from pcls.pretrained.names.convnext import TIMM_CONVNEXT, TIMM_SMALL_CONVNEXT, TORCHVISION_CONVNEXT

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "timm-state-dict-keys.json"


@pytest.fixture(scope="module")
def reference():
    if not REFERENCE.is_file():
        pytest.skip("the keys of timm (../shared/reference) are not here")
    return json.loads(REFERENCE.read_text())


def shapes_of(model, names):
    """Key to shape, as the other library has them."""
    leaves = {names.key(path): leaf.shape for path, leaf in {**model.params, **model.stats}.items()}
    return {key: foreign_shape(shape, names.is_pointwise(key)) for key, shape in leaves.items()}


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet50",
        "resnet50d",
        "convnext_tiny",
        "sequencer2d_s",
        "tf_efficientnetv2_s",
        "efficientnetv2_rw_s",
        "mobilenetv3_large_100",
        "mobilenetv3_small_100",
        "tf_mobilenetv3_large_100",
    ],
)
def test_keys_and_shapes_are_those_of_timm(reference, name):
    expected = {key: tuple(shape) for key, (shape, _) in reference[name].items() if not key.endswith(IGNORED)}
    assert shapes_of(customary_model(name), timm_names(name)) == expected


@pytest.mark.peer
@pytest.mark.parametrize("name", TIMM)
def test_keys_and_shapes_are_those_of_the_installed_timm(timm, name):
    import torch

    with torch.device("meta"):
        state = timm.create_model(name).state_dict()
    expected = {key: tuple(tensor.shape) for key, tensor in state.items() if not key.endswith(IGNORED)}
    assert shapes_of(customary_model(name), timm_names(name)) == expected


@pytest.mark.peer
@pytest.mark.parametrize("name", TORCHVISION)
def test_keys_and_shapes_are_those_of_the_installed_torchvision(timm, name):
    import torch

    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        state = torchvision.models.get_model(name).state_dict()
    expected = {key: tuple(tensor.shape) for key, tensor in state.items() if not key.endswith(IGNORED)}
    assert shapes_of(customary_model(name), TORCHVISION[name]) == expected


@pytest.mark.parametrize("names", [TIMM_CONVNEXT, TIMM_SMALL_CONVNEXT, TORCHVISION_CONVNEXT])
def test_weights_of_a_convnext_go_out_and_come_back_bit_for_bit(names):
    model = ModelDef.of(
        lambda rngs: ConvNeXt((1, 1, 2, 1), (4, 8, 12, 16), channels=3, classes=7, dtype=jnp.float32, rngs=rngs)
    )
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in model.params.items()}
    tensors = export_weights(params, {}, names)
    assert {key: tensor.shape for key, tensor in tensors.items()} == shapes_of(model, names)
    found, stats = import_weights(model, names, tensors)
    assert stats == {}
    assert found.keys() == params.keys()
    for path, array in found.items():
        np.testing.assert_array_equal(array, params[path], err_msg=path)


def test_what_lies_in_a_tensor_with_a_height_and_a_width_of_1_keeps_its_order():
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = "stages/0/blocks/1/expand/kernel"
    (small,) = export_weights({path: kernel}, {}, TIMM_SMALL_CONVNEXT).values()
    np.testing.assert_array_equal(small[:, :, 0, 0], kernel.T)
    tensors = export_weights({"stages/2/blocks/1/scale": kernel[1]}, {}, TORCHVISION_CONVNEXT)
    assert {key: tensor.tolist() for key, tensor in tensors.items()} == {
        "features.5.1.layer_scale": [[[3.0]], [[4.0]], [[5.0]]]
    }


def test_a_model_that_timm_does_not_have_is_refused_with_those_that_it_has():
    with pytest.raises(UserError, match=r"^timm has no weights for 'cnn28'; models that it has: resnet18, "):
        timm_names("cnn28")
