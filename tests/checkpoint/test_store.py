import contextlib
import errno
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.checkpoint.store import CheckpointStore, set_aside
from pcls.errors import UserError
from pcls.parallel.mesh import make_mesh
from pcls.parallel.rules import sharding


def split(mesh, tree):
    """Shardings over the fsdp axis."""
    return jax.tree.map(lambda leaf: sharding(mesh, leaf.shape, ("fsdp",)), tree)


def tree_at(step):
    """Arrays of several types and shapes, sharded and not; each a function of the step."""
    key = jax.random.key(step)
    tree = {
        "step": jnp.int32(step),
        "params": {"kernel": jax.random.normal(key, (4, 16)), "bias": jnp.full(3, step, jnp.float32)},
        "half": jnp.arange(5, dtype=jnp.bfloat16) * step,
        "key": jax.random.key_data(key),
        "none": None,
    }
    return jax.device_put(tree, split(make_mesh(4, 2), tree))


def shapes_of(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (one.dtype, one.sharding) == (other.dtype, other.sharding)
        np.testing.assert_array_equal(one, other)


@contextlib.contextmanager
def store_in(folder, *, keep=3, warnings=None):
    warnings = [] if warnings is None else warnings
    store = CheckpointStore(folder, keep=keep, warn=warnings.append, agree=lambda value: value)
    try:
        yield store
    finally:
        store.close()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A folder with steps 4 and 8."""
    folder = tmp_path_factory.mktemp("pristine") / "checkpoints"
    with store_in(folder) as store:
        store.save(4, tree_at(4))
        store.save(8, tree_at(8))
    return folder


@pytest.fixture
def saved(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "checkpoints")


def restored(folder, **options):
    """The tree, its step and what was said."""
    warnings = []
    with store_in(folder, warnings=warnings) as store:
        found = store.restore(shapes_of(tree_at(0)), **options)
    return *(found or (None, None)), warnings


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_tree_comes_back_bit_for_bit_where_it_lived(pristine):
    tree, step, warnings = restored(pristine)
    assert (step, warnings) == (8, [])
    assert_same(tree, tree_at(8))


def test_a_tree_comes_back_on_another_mesh(pristine):
    like = tree_at(0)
    shardings = split(make_mesh(1, 8), like)
    wanted = jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), like, shardings)
    with store_in(pristine) as store:
        tree, _ = store.restore(wanted)
    assert tree["params"]["kernel"].addressable_shards[0].data.shape == (4, 2)
    np.testing.assert_array_equal(tree["params"]["kernel"], tree_at(8)["params"]["kernel"])


def test_a_save_holds_its_step_though_the_arrays_are_given_up_at_once(tmp_path):
    @jax.jit
    def make():
        return {"a": jnp.arange(1 << 20, dtype=jnp.float32)}

    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
    with store_in(tmp_path / "checkpoints") as store:
        tree = make()
        shapes = shapes_of(tree)
        store.save(1, tree)
        for _ in range(5):
            tree = overwrite(tree)
        jax.block_until_ready(tree)
        store.wait()
        found, _ = store.restore(shapes)
    np.testing.assert_array_equal(found["a"], np.arange(1 << 20, dtype=np.float32))


@pytest.mark.faults
def test_what_a_killed_save_left_is_in_nobodys_way(saved):
    shutil.copytree(saved / "8", saved / "12.orbax-checkpoint-tmp")
    with store_in(saved) as store:
        store.save(12, tree_at(12))
        store.wait()
        assert store.steps() == [4, 8, 12]
    tree, step, warnings = restored(saved)
    assert (step, warnings) == (12, [])
    assert_same(tree, tree_at(12))


def test_nothing_saved_is_nothing_restored(tmp_path):
    assert restored(tmp_path / "checkpoints") == (None, None, [])


def test_only_the_newest_steps_are_kept(tmp_path):
    with store_in(tmp_path / "checkpoints", keep=2) as store:
        for step in (1, 2, 3, 10):
            store.save(step, tree_at(step))
        store.wait()
        assert store.steps() == [3, 10]


@pytest.mark.faults
def test_one_flipped_bit_in_any_file_falls_back_one_step_and_loses_nothing(pristine, tmp_path):
    names = sorted(contents(pristine / "8"))
    assert len(names) > 5
    for number, name in enumerate(names):
        folder = shutil.copytree(pristine, tmp_path / str(number))
        data = bytearray((folder / "8" / name).read_bytes())
        if not data:
            continue
        data[len(data) // 2] ^= 1 << (number % 8)
        (folder / "8" / name).write_bytes(data)
        damaged = contents(folder / "8")
        tree, step, warnings = restored(folder)
        assert step == 4, name
        assert_same(tree, tree_at(4))
        assert len(warnings) == 1
        assert warnings[0].startswith("checkpoint step 8 is damaged (")
        assert warnings[0].endswith("; resumed from step 4, bad step kept as 8.corrupt")
        assert name in warnings[0] or name == "pcls_manifest.json"
        assert contents(folder / "8.corrupt") == damaged


@pytest.mark.faults
@pytest.mark.parametrize("name", ["pcls_manifest.json", "state/_METADATA", "_CHECKPOINT_METADATA"])
@pytest.mark.parametrize("fault", ["missing", "cut"])
def test_a_missing_or_cut_file_falls_back_one_step(saved, name, fault):
    path = saved / "8" / name
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    _, step, warnings = restored(saved)
    assert step == 4
    assert name in warnings[0] or "no manifest" in warnings[0]


def test_an_empty_step_folder_is_no_step(saved):
    (saved / "12").mkdir()
    _, step, warnings = restored(saved)
    assert step == 8
    assert warnings == [
        "checkpoint step 12 is damaged (it has no manifest: its save was cut off); "
        "resumed from step 8, bad step kept as 12.corrupt"
    ]


def test_all_steps_damaged_is_said_and_nothing_restored(saved):
    for step in ("4", "8"):
        (saved / step / "pcls_manifest.json").unlink()
    tree, _, warnings = restored(saved)
    assert tree is None
    assert [text.split("; ")[1] for text in warnings] == [
        "no earlier step is valid, bad step kept as 8.corrupt",
        "no earlier step is valid, bad step kept as 4.corrupt",
    ]


def test_one_who_only_reads_renames_nothing(saved):
    (saved / "8" / "pcls_manifest.json").unlink()
    before = contents(saved)
    _, step, warnings = restored(saved, rename=False)
    assert step == 4
    assert warnings == ["checkpoint step 8 is damaged (it has no manifest: its save was cut off); read step 4"]
    assert contents(saved) == before


def test_a_second_damaged_step_of_the_same_number_gets_a_name_of_its_own(tmp_path):
    names = []
    for _ in range(3):
        (tmp_path / "8").mkdir()
        names.append(set_aside(tmp_path / "8").name)
    assert names == ["8.corrupt", "8.corrupt2", "8.corrupt3"]


def test_damaged_steps_do_not_push_valid_ones_out(saved):
    with store_in(saved, keep=2) as store:
        (saved / "8" / "pcls_manifest.json").unlink()
        store.save(12, tree_at(12))
        store.wait()
        assert store.steps() == [4, 8, 12]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree | {"step": jnp.float32(0)}, "step is int32[] there and float32[] here"),
        (lambda tree: tree | {"half": jnp.zeros(5)}, "half is bfloat16[5] there and float32[5] here"),
        (lambda tree: tree | {"half": jnp.zeros(6, jnp.bfloat16)}, "half is bfloat16[5] there and bfloat16[6] here"),
        (lambda tree: tree | {"more": jnp.zeros(2)}, "more is absent there and float32[2] here"),
        (
            lambda tree: {name: leaf for name, leaf in tree.items() if name != "key"},
            "key is uint32[2] there and absent here",
        ),
    ],
)
def test_arrays_of_other_types_shapes_or_names_are_refused_by_name(pristine, change, words):
    like = change(tree_at(0))
    with store_in(pristine) as store, pytest.raises(UserError) as caught:
        store.restore(shapes_of(like))
    assert words in str(caught.value)
    assert "checkpoint of another model" in str(caught.value)
    assert (pristine / "8").is_dir()


@pytest.mark.faults
def test_a_full_disk_is_one_line_and_leaves_the_earlier_step(small_disk):
    folder = small_disk / "checkpoints"
    big = jax.random.normal(jax.random.key(0), (1 << 20,))
    with store_in(folder) as store:
        store.save(4, tree_at(4))
        store.wait()
        with pytest.raises(UserError) as caught:
            store.save(8, tree_at(8) | {"big": big})
            store.wait()
        assert str(caught.value).startswith(f"{folder}: a checkpoint could not be written; no space left on the disk")
        assert "\n" not in str(caught.value)
        assert [path.name for path in folder.iterdir()] == ["4"]
        # There is room again for a small one.
        store.save(9, tree_at(9))
    tree, step, warnings = restored(folder)
    assert (step, warnings) == (9, [])
    assert_same(tree, tree_at(9))


@pytest.mark.faults
def test_a_disk_that_is_full_before_the_manifest_leaves_no_half_step(saved, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pcls.checkpoint.store.write_manifest", refuse)
    with store_in(saved) as store:
        store.save(12, tree_at(12))
        with pytest.raises(UserError, match="no space left on the disk"):
            store.wait()
    assert sorted(path.name for path in saved.iterdir()) == ["4", "8"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with store_in(tmp_path / "file" / "checkpoints") as store, pytest.raises(UserError, match="Not a directory"):
        store.save(1, tree_at(1))


@pytest.mark.faults
def test_a_folder_that_may_not_be_written_is_one_line(saved):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    saved.chmod(0o500)
    with store_in(saved) as store:
        with pytest.raises(UserError, match="could not be written; Permission denied") as caught:
            store.save(12, tree_at(12))
            store.wait()
        assert "\n" not in str(caught.value)
    saved.chmod(0o700)
