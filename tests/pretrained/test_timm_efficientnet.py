"""EfficientNet and MobileNetV3 beside timm's and torchvision's, to the digit."""

import pytest

from pcls.models.registry import define_model
from pcls.pretrained.exchange import export_weights, import_weights
from pcls.pretrained.names import TORCHVISION, timm_names

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


def test_torchvision_computes_the_same_with_the_same_weights_under_its_names(timm):
    torch, torchvision = pytest.importorskip("torch"), pytest.importorskip("torchvision")
    torch.manual_seed(0)
    images = torch.randn(4, 3, 64, 64)
    # The running statistics are those of one training pass: else all examples would come out alike.
    ours = timm.create_model("efficientnet_b0", num_classes=9, bn_momentum=1.0)
    theirs = torchvision.models.efficientnet_b0(num_classes=9).eval()
    model = define_model("efficientnet_b0", height=64, width=64, channels=3, classes=9)
    with torch.no_grad():
        ours.train()(images)
        state = {key: tensor.numpy() for key, tensor in ours.eval().state_dict().items()}
        weights = import_weights(model, timm_names("efficientnet_b0"), state)
        exported = export_weights(*weights, TORCHVISION["efficientnet_b0"])
        loaded = theirs.load_state_dict({key: torch.from_numpy(one) for key, one in exported.items()}, strict=False)
        assert not loaded.unexpected_keys
        assert all(key.endswith("num_batches_tracked") for key in loaded.missing_keys)
        expected, found = ours(images), theirs(images)
    assert (expected - expected.mean(0)).norm() > 0.01 * expected.norm()
    assert (found - expected).norm() <= 5e-5 * expected.norm()
