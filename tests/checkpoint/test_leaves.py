import shutil

import jax
import numpy as np
import pytest

from pcls.checkpoint.leaves import read_leaves, stored_leaves, verify_leaves
from pcls.checkpoint.manifest import Damaged, Leaf, leaf_of, read_manifest
from pcls.checkpoint.store import CheckpointStore
from pcls.parallel.mesh import make_mesh
from pcls.parallel.rules import sharding

ARRAYS = {
    "step": np.asarray(3, np.int32),
    "params/a/kernel": np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32),
    "params/a/kernel2": np.ones(3, np.float32),
    "half": np.arange(5).astype(jax.numpy.bfloat16),
    "flag": np.asarray([True, False]),
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    # A name that a URL would have to escape.
    folder = tmp_path_factory.mktemp("ä b%20c") / "checkpoints"
    mesh = make_mesh(4, 2)
    store = CheckpointStore(folder, warn=pytest.fail, agree=int)
    placed = {name: jax.device_put(array, sharding(mesh, array.shape, ("fsdp",))) for name, array in ARRAYS.items()}
    store.save(3, placed)
    store.close()
    return folder / "3"


@pytest.fixture
def step(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "3")


def test_every_array_comes_back_whole_without_a_mesh(pristine):
    leaves = read_manifest(pristine).leaves
    found = dict(read_leaves(pristine, leaves))
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)


def test_the_manifest_holds_the_digest_of_what_was_in_memory(pristine):
    assert read_manifest(pristine).leaves == {name: leaf_of(array) for name, array in ARRAYS.items()}
    assert stored_leaves(pristine, read_manifest(pristine).leaves) == read_manifest(pristine).leaves


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"half": Leaf((6,), "bfloat16")}, r"leaf half is bfloat16\[5\] and not bfloat16\[6\]"),
        ({"half": Leaf((5,), "float32")}, r"leaf half is bfloat16\[5\] and not float32\[5\]"),
        ({"more": Leaf((5,), "float32")}, "leaf more cannot be read"),
        ({"half": Leaf((5,), "bfloat16", "0" * 64)}, "leaf half: digest differs"),
    ],
)
def test_a_leaf_that_is_not_as_it_should_be_is_named(pristine, change, words):
    with pytest.raises(Damaged, match=words):
        verify_leaves(pristine, dict(read_manifest(pristine).leaves) | change)


@pytest.mark.faults
def test_a_leaf_whose_bytes_are_damaged_is_named(step):
    leaves = read_manifest(step).leaves
    for path in (step / "state" / "d").iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(Damaged, match=r"^leaf .* cannot be read"):
        verify_leaves(step, leaves)
