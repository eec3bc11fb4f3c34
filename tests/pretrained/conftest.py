"""The gate that every family of public weights passes: the numbers of timm, with its weights copied."""

import hashlib
import json
from collections.abc import Callable

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from pcls.errors import UserError
from pcls.models.inverted import ACTIVATIONS
from pcls.models.registry import define_model
from pcls.pretrained.bundle import FACTS, WEIGHTS, load_bundle
from pcls.pretrained.exchange import export_weights, import_weights
from pcls.pretrained.names import TORCHVISION, timm_names

CLASSES, BATCH = 9, 4
# Above this a GELU by tanh, another padding or another order of channels shows; below it is float32's rounding.
LOGITS, GRADIENT = 5e-5, 1e-4
# Of two equal numbers a maximum may choose the other one, which moves the gradient of its example. So one example at
# least must be exact, and all within this.
KINKED = 0.02


def drawn(model):
    """A torch model with weights that hide nothing: no zero scale, no unit variance; running statistics from a pass.

    timm's own start has scales of zero at the ends of blocks, behind which anything could stand.
    """
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                # Some below zero; few above one, for they multiply what rounding left.
                weight.normal_(0.0 if name.endswith("bias") else 0.5, 0.3)
            else:
                weight.normal_(0.0, (2 / weight[0].numel()) ** 0.5)
        calibrate(model)
    return model.eval()


def calibrate(model) -> None:
    """Running statistics from one training pass, over enough positions that no channel's variance is nearly zero."""
    import torch

    with torch.no_grad():
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        model.train()(images(128))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    model.eval()


def smooth(model) -> None:
    """Softplus for ReLU: of a million inputs some are zero to the last digit, and pass in one library only."""
    import torch

    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, torch.nn.ReLU):
                setattr(module, name, torch.nn.Softplus())


def images(size, seed=0):
    import torch

    return torch.from_numpy(np.random.default_rng(seed).normal(size=(BATCH, 3, size, size)).astype(np.float32))


def distance(found, expected) -> float:
    """Relative, in the L2 norm."""
    return float(np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected))


def differ(logits) -> bool:
    """Whether the examples differ: what does not depend on the image is equal by itself."""
    return bool(np.linalg.norm(logits - logits.mean(0)) > 0.01 * np.linalg.norm(logits))


def torch_results(peer, size):
    """Logits, maps after stages, and logits of a training pass; computed in double precision, so without error."""
    import torch

    x = images(size, seed=1).double()
    with torch.no_grad():
        logits = peer(x)
        # torchvision's have none to give.
        maps = peer.forward_intermediates(x, intermediates_only=True) if hasattr(peer, "forward_intermediates") else []
        state = {key: tensor.clone() for key, tensor in peer.state_dict().items()}
        training = peer.train()(x)
        peer.load_state_dict(state)
        peer.eval()
    return logits.numpy(), [channels_last(one) for one in maps], training.numpy()


def torch_gradient(peer, size):
    """Of the logits' squared sum by the images."""
    x = images(size, seed=1).double().requires_grad_()
    (peer(x) ** 2).sum().backward()
    return channels_last(x.grad)


def channels_last(tensor):
    return tensor.numpy().transpose(0, 2, 3, 1)


def pcls_results(model, params, stats, size):
    """The same."""
    from pcls.nn.training import TrainingPass

    @jax.jit
    def run(params, stats, x):
        training, _ = model.apply(params, stats, x, TrainingPass())
        return model.apply(params, stats, x)[0], model.features(params, stats, x), training

    with jax.default_matmul_precision("highest"):
        return run(params, stats, channels_last(images(size, seed=1)))


def pcls_gradient(model, params, stats, size):
    """The same."""
    gradient = jax.jit(jax.grad(lambda x: (model.apply(params, stats, x)[0] ** 2).sum()))
    with jax.default_matmul_precision("highest"):
        return gradient(channels_last(images(size, seed=1)))


@pytest.fixture
def gate(timm, monkeypatch) -> Callable[..., None]:
    """A function that fails unless a model computes what timm's of the same name does, forward and back."""

    def check(name: str, sizes=(64, 96), **options) -> None:
        peer = drawn(timm.create_model(name, num_classes=CLASSES, **options))
        check_model(peer, name, timm_names(name), sizes, monkeypatch)

    return check


@pytest.fixture
def torchvision_gate(timm, monkeypatch) -> Callable[..., None]:
    """The same beside torchvision's of the same name."""
    torchvision = pytest.importorskip("torchvision")

    def check(name: str, sizes=(64, 96), **options) -> None:
        peer = drawn(torchvision.models.get_model(name, num_classes=CLASSES, dropout=0.0, **options))
        check_model(peer, name, TORCHVISION[name], sizes, monkeypatch)

    return check


def check_model(peer, name, names, sizes, monkeypatch) -> None:
    model = define_model(name, height=sizes[0], width=sizes[0], channels=3, classes=CLASSES)
    weights = import_weights(model, names, state_of(peer))
    peer.double()
    for size in sizes:
        check_forward(peer, model, weights, size)
    check_round_trip(state_of(peer.float()), weights, names)
    smooth(peer)
    calibrate(peer.float())
    monkeypatch.setattr(nnx, "relu", jax.nn.softplus)
    monkeypatch.setitem(ACTIVATIONS, "relu", jax.nn.softplus)
    weights = import_weights(model, names, state_of(peer))
    check_gradient(peer.double(), model, weights, sizes[0])


def state_of(peer) -> dict[str, np.ndarray]:
    # Copies: a tensor and its array share memory, and calibration changes it.
    return {key: tensor.numpy().copy() for key, tensor in peer.state_dict().items()}


def check_forward(peer, model, weights, size):
    logits, maps, training = torch_results(peer, size)
    found_logits, found_maps, found_training = pcls_results(model, *weights, size)
    assert differ(logits)
    assert distance(found_logits, logits) <= LOGITS
    # timm tells of the stem too.
    if maps := maps[-len(found_maps) :]:
        assert [one.shape for one in found_maps] == [one.shape for one in maps]
        for found, expected in zip(found_maps, maps, strict=True):
            assert distance(found, expected) <= LOGITS
    assert distance(found_training, training) <= LOGITS


def check_gradient(peer, model, weights, size):
    by_example = sorted(map(distance, pcls_gradient(model, *weights, size), torch_gradient(peer, size)))
    assert by_example[0] <= GRADIENT
    assert by_example[-1] <= KINKED


def check_round_trip(tensors, weights, names):
    exported = export_weights(*weights, names)
    assert exported.keys() == {key for key in tensors if not key.endswith("num_batches_tracked")}
    for key, tensor in exported.items():
        np.testing.assert_array_equal(tensor, tensors[key], err_msg=key)


@pytest.fixture(scope="session")
def sign():
    """A function that puts tensors or facts into a bundle, with digests that agree."""

    def put(folder, tensors=None, **changes):
        if tensors is not None:
            save_file(tensors, folder / WEIGHTS)
        facts = json.loads((folder / FACTS).read_text()) | changes
        facts["weights_sha256"] = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        del facts["facts_sha256"]
        facts["facts_sha256"] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        (folder / FACTS).write_text(json.dumps(facts))

    return put


@pytest.fixture(scope="session")
def refusal():
    """A function to the one line by which a bundle is refused."""

    def of_bundle(folder):
        with pytest.raises(UserError) as caught:
            load_bundle(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return of_bundle
