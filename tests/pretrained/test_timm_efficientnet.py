"""EfficientNet and MobileNetV3 beside timm's and torchvision's, to the digit."""

import pytest

pytestmark = pytest.mark.peer


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_b0",
        "tf_efficientnet_b0",
        "tf_efficientnetv2_s",
        "efficientnetv2_s",
        "efficientnetv2_rw_s",
        "mobilenetv3_large_100",
        "mobilenetv3_small_100",
        "tf_mobilenetv3_large_100",
        "tf_mobilenetv3_small_100",
    ],
)
def test_it_computes_what_timm_does(gate, name):
    gate(name)


def test_padding_of_tensorflow_depends_on_the_size_and_is_right_at_an_odd_one(gate):
    gate("tf_mobilenetv3_large_100", sizes=(65, 75))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("efficientnet_b0", {"stochastic_depth_prob": 0.0}),
        ("efficientnet_v2_s", {"stochastic_depth_prob": 0.0}),
        ("mobilenet_v3_large", {}),
        ("mobilenet_v3_small", {}),
    ],
)
def test_it_computes_what_torchvision_does(torchvision_gate, name, options):
    torchvision_gate(name, **options)


def test_the_padding_of_torchvision_is_right_at_an_odd_size(torchvision_gate):
    torchvision_gate("mobilenet_v3_small", sizes=(65, 75))
