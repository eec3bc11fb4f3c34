"""EfficientNet and MobileNetV3 beside timm's, to the digit."""

import pytest

pytestmark = pytest.mark.peer


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_b0",
        "tf_efficientnet_b0",
        "tf_efficientnetv2_s",
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
