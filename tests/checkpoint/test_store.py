import contextlib
import errno
import os
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pcls.checkpoint.manifest import Damaged, read_manifest
from pcls.checkpoint.retention import Retention
from pcls.checkpoint.store import CheckpointStore, NotSaved, set_aside
from pcls.errors import RestartRequested, UserError
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
def store_in(folder, *, keep=3, warnings=None, **options):
    warnings = [] if warnings is None else warnings
    options = {"retention": Retention(keep)} | options
    store = CheckpointStore(folder, warn=warnings.append, agree=lambda value: value, **options)
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
    def refuse(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pcls.checkpoint.store.write_manifest", refuse)
    with store_in(saved) as store:
        store.save(12, tree_at(12))
        with pytest.raises(UserError, match="no space left on the disk"):
            store.wait()
    assert sorted(path.name for path in saved.iterdir()) == ["4", "8"]


@pytest.mark.faults
def test_a_failed_save_is_told_by_a_poll_and_the_next_one_succeeds(saved, monkeypatch):
    def refuse(*args, **options):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    with store_in(saved) as store:
        with monkeypatch.context() as patch:
            patch.setattr("pcls.checkpoint.store.write_manifest", refuse)
            store.save(12, tree_at(12))
            with pytest.raises(NotSaved, match="File too large: check the folder"):
                for _ in range(200):
                    store.poll()
                    time.sleep(0.05)
        store.poll()
        store.save(12, tree_at(12))
        store.wait()
        assert store.steps() == [4, 8, 12]
    # Closing has thrown away what the failed save left, and not what came after it.
    assert restored(saved)[1:] == (12, [])


def test_a_cut_off_save_of_the_same_step_makes_way_and_a_valid_one_does_not(saved):
    warnings = []
    (saved / "12").mkdir()
    with store_in(saved, warnings=warnings) as store:
        store.save(12, tree_at(12))
        with pytest.raises(NotSaved, match="8 is a valid step already"):
            store.save(8, tree_at(8))
    assert warnings == ["checkpoint step 12 is damaged (it has no manifest: its save was cut off); kept as 12.corrupt"]
    assert restored(saved)[1] == 12


@pytest.mark.parametrize("commit", ["rename", "marker"])
def test_either_way_to_commit_makes_steps_that_come_back(tmp_path, commit, monkeypatch):
    renamed = []
    for name in ("rename", "replace"):
        act = getattr(os, name)
        monkeypatch.setattr(os, name, lambda a, b, act=act, **rest: (renamed.append(os.fspath(a)), act(a, b, **rest)))
    with store_in(tmp_path / "checkpoints", commit=commit) as store:
        store.save(1, tree_at(1))
        store.save(2, tree_at(2))
    folders = [name for name in renamed if name.endswith(".orbax-checkpoint-tmp")]
    assert len(folders) == (2 if commit == "rename" else 0)
    tree, step, warnings = restored(tmp_path / "checkpoints")
    assert (step, warnings) == (2, [])
    assert_same(tree, tree_at(2))


@pytest.mark.faults
def test_a_save_in_place_that_fails_leaves_nothing(tmp_path, monkeypatch):
    from orbax.checkpoint.experimental import v1 as ocp

    save_async = ocp.save_async

    class Refused:
        def __init__(self, *arguments):
            self.result_of_all = save_async(*arguments).result

        def result(self):
            self.result_of_all()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    folder = tmp_path / "checkpoints"
    with store_in(folder, commit="marker") as store:
        store.save(1, tree_at(1))
        store.wait()
        with monkeypatch.context() as patch:
            patch.setattr(ocp, "save_async", Refused)
            store.save(2, tree_at(2))
            with pytest.raises(NotSaved, match="Input/output error"):
                store.wait()
    assert [path.name for path in folder.iterdir()] == ["1"]


def test_a_step_that_reads_back_otherwise_is_not_saved(saved, monkeypatch):
    def other(folder, leaves):
        raise Damaged("leaf params/kernel cannot be read (it is cut)")

    monkeypatch.setattr("pcls.checkpoint.store.stored_leaves", other)
    with store_in(saved) as store:
        store.save(12, tree_at(12))
        with pytest.raises(NotSaved, match=r"reads back otherwise \(leaf params/kernel cannot be read"):
            store.wait()
    assert sorted(path.name for path in saved.iterdir()) == ["4", "8"]


def test_arrays_that_come_otherwise_from_good_files_end_the_run_by_the_leaf_s_name(pristine, monkeypatch):
    from pcls.checkpoint import store as module

    load = module.ocp.load

    def wrong(folder, wanted):
        found = load(folder, wanted)
        return found | {"half": found["half"].at[2].add(1)}

    monkeypatch.setattr(module.ocp, "load", wrong)
    with store_in(pristine) as store, pytest.raises(RestartRequested, match="leaf half is not what was saved"):
        store.restore(shapes_of(tree_at(0)))


def test_the_best_steps_stay_by_the_scores_that_they_were_saved_with(tmp_path):
    scores = {1: 0.5, 2: 0.9, 3: float("nan"), 4: 0.8, 5: 0.7, 6: None}
    with store_in(tmp_path / "checkpoints", retention=Retention(2, best=1)) as store:
        for step, score in scores.items():
            store.save(step, tree_at(step), score=score)
        store.wait()
        assert store.steps() == [2, 5, 6]
    assert [read_manifest(tmp_path / "checkpoints" / str(step)).score for step in (2, 5, 6)] == [0.9, 0.7, None]


def test_a_folder_of_another_step_s_number_is_damage(saved):
    (saved / "8").rename(saved / "9")
    _, step, warnings = restored(saved)
    assert step == 4
    assert warnings[0].startswith("checkpoint step 9 is damaged (its manifest is that of step 8)")


@pytest.mark.faults
def test_steps_are_ordered_by_number_whatever_the_clock_said(saved):
    os.utime(saved / "4", (4e9, 4e9))
    os.utime(saved / "8", (0, 0))
    assert restored(saved)[1:] == (8, [])


@pytest.mark.faults
def test_half_saves_of_killed_processes_are_removed_by_the_writer_only(saved):
    half = shutil.copytree(saved / "8", saved / "12.orbax-checkpoint-tmp")
    restored(saved, rename=False)
    assert half.is_dir()
    restored(saved)
    assert not half.exists()


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
