"""What is listed, verified, pruned and copied of a run's checkpoints, as the verbs show it."""

import errno
import json
import os
import re
import shutil

import fsspec
import numpy as np
import pytest

import pcls
from pcls.checkpoint.leaves import read_leaves
from pcls.checkpoint.manifest import read_manifest, state_digest
from pcls.checkpoint.retention import Retention
from pcls.cli import main
from pcls.config import load_recipe
from pcls.config.load import with_overrides
from pcls.run.checkpoint_copy import copy_checkpoints
from pcls.run.checkpoints import list_checkpoints, prune_checkpoints, recipe_digest, retention_of, verify_checkpoints
from pcls.run.folder import RunFolder


@pytest.fixture
def run(finished_run, tmp_path):
    """A finished run of 12 steps, saved at 4, 8 and 12, evaluated at 6 and 12."""
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture
def said(capsys):
    def call(*argv):
        code = main(["checkpoints", *map(str, argv)])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return call


def flip(run, step, name="state/d"):
    """Changes a bit of the largest file under a name."""
    path = run / "checkpoints" / str(step) / name
    path = max(path.rglob("*"), key=lambda each: each.stat().st_size) if path.is_dir() else path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    return path.name


def steps_of(run):
    return sorted(int(path.name) for path in (run / "checkpoints").iterdir())


def test_the_manifest_says_where_a_step_comes_from(run, final_state):
    manifest = read_manifest(run / "checkpoints" / "12")
    recipe = RunFolder(run).recipe()
    assert manifest.about["recipe"] == recipe_digest(recipe)
    assert manifest.about["mesh"] == {"data": 8, "fsdp": 1, "model": 1}
    assert manifest.about["data"] == {"records": 1438, "batch_size": 32, "seed": recipe.train.seed}
    assert manifest.about["versions"]["orbax-checkpoint"]
    assert manifest.score == pytest.approx(pcls.evaluate(run).top1)
    assert [read_manifest(run / "checkpoints" / str(step)).score for step in (4, 8)] == [None, None]
    state = final_state(run)
    assert state.keys() == manifest.leaves.keys()
    for name, array in read_leaves(run / "checkpoints" / "12", manifest.leaves):
        np.testing.assert_array_equal(array, state[name])


def test_the_digest_of_a_recipe_goes_by_everything_but_the_folder():
    recipe = load_recipe("digits_cnn")
    assert recipe_digest(with_overrides(recipe, {"run.dir": "elsewhere"})) == recipe_digest(recipe)
    assert recipe_digest(with_overrides(recipe, {"train.seed": 1})) != recipe_digest(recipe)


def test_a_recipe_s_lengths_become_steps():
    changes = {"checkpoint.keep_every": "0.5 epochs", "checkpoint.keep_best": 2, "checkpoint.keep": 3}
    recipe = with_overrides(load_recipe("digits_cnn"), changes)
    assert retention_of(recipe, 44.9375) == Retention(3, 2, 44.9375 / 2)


def test_list_shows_size_score_and_why_each_step_is_kept(run, said):
    code, lines, _ = said("list", run)
    assert code == 0
    assert [line.split()[0] for line in lines] == ["step", "4", "8", "12", "only"]
    assert re.fullmatch(r" +4 +0\.\d\d +newest, 3 of 3", lines[1])
    assert re.fullmatch(r" +12 +0\.\d\d +0\.\d{4}  newest, 1 of 3", lines[3])
    assert lines[4].endswith(f"pcls checkpoints verify {run}")


def test_list_reads_no_arrays_and_says_what_sizes_tell(run, said):
    flip(run, 12)
    assert [each.problem for each in list_checkpoints(run)] == ["", "", ""]
    path = run / "checkpoints" / "8" / "state" / "manifest.ocdbt"
    path.write_bytes(path.read_bytes()[:-1])
    _, lines, _ = said("list", run)
    assert re.fullmatch(r" +8 +0\.00 +damaged: state/manifest\.ocdbt has \d+ of \d+ bytes", lines[2])
    (row,) = [each for each in json.loads(said("list", run, "--json")[1][0])["checkpoints"] if each["step"] == 12]
    assert (row["problem"], row["kept"], row["about"]["mesh"]["data"]) == ("", "newest", 8)


def test_verify_names_file_leaf_and_cause_and_ends_with_2(run, said):
    name = flip(run, 12)
    code, lines, errors = said("verify", run, "--digest")
    assert code == 2
    assert re.fullmatch(r"step 4: valid, \d+ files, \d+ leaves, 0\.\d\d MB", lines[0])
    assert re.fullmatch(rf"step 12: damaged \(state/d/{name}: digest differs; leaf \S+ .*\)", lines[2])
    assert lines[3] == state_digest(read_manifest(run / "checkpoints" / "8").leaves)
    assert len(errors) == 1
    assert "1 of 3 checkpoints are damaged" in errors[0]


def test_the_digest_is_that_of_the_newest_step_and_the_last_line(run, said, final_state):
    code, lines, errors = said("verify", run, "--digest")
    assert (code, errors) == (0, [])
    assert re.fullmatch("[0-9a-f]{64}", lines[-1])
    whole = json.loads(said("verify", run, "--json")[1][0])
    assert whole["digest"] == lines[-1] == whole["checkpoints"][-1]["digest"]
    _, lines, _ = said("verify", run, "--digest", "--step", "4")
    assert lines[1:] == [whole["checkpoints"][0]["digest"]]
    assert lines[1] != whole["digest"]


def test_equal_runs_have_equal_digests_wherever_they_lie_and_however_they_were_saved(run, said, tmp_path, tiny):
    pcls.train("digits_cnn", tiny | {"run.dir": str(tmp_path / "again"), "checkpoint.commit": "marker"})
    assert said("verify", tmp_path / "again", "--digest")[1][-1] == said("verify", run, "--digest")[1][-1]


@pytest.mark.parametrize("verb", ["list", "verify", "prune"])
def test_a_folder_without_a_run_is_one_line(tmp_path, said, verb):
    code, lines, errors = said(verb, tmp_path)
    assert (code, lines, len(errors)) == (2, [], 1)
    assert "there is no run in this folder" in errors[0]


def test_a_run_without_checkpoints_or_without_the_step_says_so(run, said):
    assert said("verify", run, "--step", "5")[2] == [f"pcls: {run}/checkpoints: there is no step 5; there are 4, 8, 12"]
    shutil.rmtree(run / "checkpoints")
    assert said("list", run)[:2] == (0, ["no checkpoint is saved yet"])
    assert said("verify", run)[0] == 2
    assert said("prune", run)[:2] == (0, ["all are kept"])
    assert "there is no valid step to copy" in said("copy", run, f"{run}2")[2][0]


def test_a_step_that_is_still_being_saved_is_no_damage(run):
    (run / "checkpoints" / "16").mkdir()
    assert list_checkpoints(run)[-1].problem == "it has no manifest: its save was cut off"
    with RunFolder(run).locked():
        assert [each.step for each in list_checkpoints(run)] == [4, 8, 12]
        assert [each.problem for each in verify_checkpoints(run)] == ["", "", ""]


def test_prune_keeps_what_the_recipe_keeps(run, said):
    assert said("prune", run)[:2] == (0, ["all are kept"])
    argv = ("prune", run, "checkpoint.keep=2")
    assert said(*argv, "--dry-run")[:2] == (0, ["would remove step 4"])
    assert steps_of(run) == [4, 8, 12]
    assert json.loads(said(*argv, "checkpoint.keep_every=4 steps", "--json")[1][0])["removed"] == []
    assert said(*argv)[:2] == (0, ["removed step 4"])
    assert steps_of(run) == [8, 12]
    assert RunFolder(run).recipe().checkpoint.keep == 3


@pytest.mark.parametrize("damaged", [[8], [12], [8, 12], [4, 8]])
def test_prune_never_counts_a_damaged_step_as_one_that_is_kept(run, damaged):
    for step in damaged:
        flip(run, step)
    assert prune_checkpoints(run, {"checkpoint.keep": 2}) == []
    assert steps_of(run) == [4, 8, 12]


@pytest.mark.parametrize("value", ["1", "0", "-1", "x"])
def test_fewer_than_two_are_not_kept(run, said, value):
    code, _, errors = said("prune", run, f"checkpoint.keep={value}")
    assert code == 2
    assert "checkpoint.keep" in errors[0]
    assert steps_of(run) == [4, 8, 12]


def test_a_run_that_is_being_written_is_not_pruned(run, said, monkeypatch):
    monkeypatch.setattr("pcls.run.lock._alive", lambda *_: True)
    with RunFolder(run).locked():
        code, _, errors = said("prune", run, "checkpoint.keep=2")
    assert code == 2
    assert "is writing this run" in errors[0]
    assert steps_of(run) == [4, 8, 12]


def test_a_copy_is_verified_and_a_run_goes_on_from_it(run, said, tmp_path, final_state):
    target = tmp_path / "copy"
    assert said("copy", run, target, "--step", "8")[:2] == (0, ["copied step 8"])
    assert [path.name for path in (target / "checkpoints").iterdir()] == ["8"]
    RunFolder(target).set_status("stopped", 8, 12)
    pcls.resume(target)
    state, expected = final_state(target), final_state(run)
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)


@pytest.mark.parametrize("inside", ["", "sub", "checkpoints/4", "../run/sub"])
def test_a_copy_into_the_run_itself_is_refused(run, said, inside):
    before = sorted(run.rglob("*"))
    code, _, errors = said("copy", run, run / inside)
    assert (code, len(errors)) == (2, 1)
    assert f"lies in the run's own folder {run}; name a folder elsewhere" in errors[0]
    assert sorted(run.rglob("*")) == before


def test_a_copy_takes_the_newest_valid_step_or_all_and_leaves_what_is_there(run, tmp_path):
    flip(run, 12)
    assert copy_checkpoints(run, str(tmp_path / "copy")) == [8]
    before = (tmp_path / "copy" / "checkpoints" / "8" / "pcls_manifest.json").stat().st_mtime_ns
    assert copy_checkpoints(run, str(tmp_path / "copy"), every=True) == [4, 8]
    assert (tmp_path / "copy" / "checkpoints" / "8" / "pcls_manifest.json").stat().st_mtime_ns == before
    assert steps_of(tmp_path / "copy") == [4, 8]
    assert not (tmp_path / "copy" / "lock").exists()


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["changed", "full"])
def test_a_copy_that_is_not_the_same_gets_no_name(run, said, tmp_path, monkeypatch, fault):
    copyfile = shutil.copyfile

    def faulty(source, target):
        if fault == "full" and "state" in source.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        copyfile(source, target)
        if target.name == "_METADATA":
            target.write_bytes(bytes(target.stat().st_size))

    monkeypatch.setattr(shutil, "copyfile", faulty)
    code, _, errors = said("copy", run, tmp_path / "copy")
    assert code == 2
    assert ("state/_METADATA: digest differs" if fault == "changed" else "No space left on device") in errors[0]
    assert list((tmp_path / "copy" / "checkpoints").iterdir()) == []
    assert not (tmp_path / "copy" / "recipe.yaml").exists()


def test_what_a_target_holds_already_is_not_written_over(run, said, tmp_path):
    target = tmp_path / "copy"
    said("copy", run, target)
    flip(target, 12)
    assert "12: is damaged (state/d/" in said("copy", run, target)[2][0]
    (target / "recipe.yaml").write_text("model: {name: rnn28}\n")
    assert "holds a run of another recipe" in said("copy", run, target, "--step", "4")[2][0]
    assert steps_of(target) == [12]
    assert "exclude each other" in said("copy", run, target, "--step", "4", "--all")[2][0]


def test_a_damaged_step_is_not_copied(run, said, tmp_path):
    flip(run, 8)
    assert "8: is damaged (state/d/" in said("copy", run, tmp_path / "copy", "--step", "8")[2][0]
    assert not (tmp_path / "copy").exists()


@pytest.fixture
def bucket():
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()


def test_a_copy_to_a_url_has_every_file_and_the_manifest_last(run, bucket, tmp_path, monkeypatch):
    written, pipe = [], type(bucket).pipe_file
    monkeypatch.setattr(type(bucket), "pipe_file", lambda fs, path, data: (written.append(path), pipe(fs, path, data)))
    assert copy_checkpoints(run, "memory://bucket/run", every=True) == [4, 8, 12]
    bucket.get("/bucket/run", str(tmp_path / "back"), recursive=True)
    for step in ("4", "8", "12"):
        names = sorted(path for path in (run / "checkpoints" / step).rglob("*") if path.is_file())
        assert names
        for path in names:
            assert (tmp_path / "back" / path.relative_to(run)).read_bytes() == path.read_bytes()
    assert written[-1].endswith("/run/recipe.yaml")
    assert written[0].endswith("/checkpoints/4/pcls_manifest.json")
    assert [each.problem for each in verify_checkpoints(tmp_path / "back")] == ["", "", ""]


@pytest.mark.faults
def test_an_object_that_reads_back_otherwise_leaves_no_step(run, bucket, said, monkeypatch):
    put = type(bucket).put_file

    def faulty(fs, source, target, **rest):
        put(fs, source, target, **rest)
        if target.endswith("_METADATA"):
            fs.store[target].seek(0)
            fs.store[target].write(b"?")

    monkeypatch.setattr(type(bucket), "put_file", faulty)
    code, _, errors = said("copy", run, "memory://user:secret@bucket/run")
    assert code == 2
    assert "_METADATA: reads back otherwise" in errors[0]
    assert "secret" not in errors[0]
    assert any(path.endswith("_CHECKPOINT_METADATA") for path in bucket.store)
    assert not any(path.endswith("pcls_manifest.json") for path in bucket.store)


def test_a_url_of_an_unknown_protocol_is_one_line(run, said):
    code, _, errors = said("copy", run, "nowhere://bucket/run")
    assert (code, len(errors)) == (2, 1)
    assert "nowhere" in errors[0]
