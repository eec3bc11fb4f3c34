"""What the tables say of a small network whose numbers are known."""

import csv

import jax
import numpy as np
import pytest

from pcls.training.tables import state_parts, state_text, write_parameter_table

# conv1 3 x 3 x 1 x 8, conv2 3 x 3 x 8 x 16, two BatchNorms, the head.
SIZES = {"conv1/kernel": 72, "conv2/kernel": 1152, "bn1/scale": 8, "bn2/bias": 16, "head/kernel": 64, "head/bias": 4}


def parts(made):
    return {part.name: part for part in state_parts(made)}


def test_the_parts_of_a_state_are_those_that_live(program):
    made = program(**{"mesh.sharding": "replicated", "train.ema_decay": 0.9})
    found, state = parts(made), made.initial_state()
    for name, tree in (("parameters", state.params), ("statistics", state.stats), ("averages", state.ema)):
        leaves = jax.tree.leaves(tree)
        assert (found[name].arrays, found[name].bytes) == (len(leaves), sum(leaf.nbytes for leaf in leaves))
        assert (found[name].split, found[name].split_bytes) == (0, 0)
        assert found[name].bytes_per_device == found[name].bytes
    assert found["statistics"].bytes == 4 * (8 + 8 + 16 + 16)
    assert "averages" not in parts(program())


@pytest.mark.parametrize("changes", [{"mesh.sharding": "zero1"}, {"mesh.fsdp": 4}], ids=["zero1", "fsdp"])
def test_bytes_a_device_are_those_of_its_shards(changes, program):
    made = program(**{"optimizer.name": "adamw"} | changes)
    state = made.initial_state()
    device = made.mesh.devices.flat[0]
    for name, tree in (("parameters", state.params), ("optimizer", state.opt_state)):
        leaves = jax.tree.leaves(tree)
        shards = [shard for leaf in leaves for shard in leaf.addressable_shards if shard.device == device]
        part = parts(made)[name]
        assert part.bytes_per_device == sum(shard.data.nbytes for shard in shards)
        assert part.split == sum(shard.data.size < leaf.size for shard, leaf in zip(shards, leaves, strict=True))
    assert parts(made)["optimizer"].split > 0
    assert (parts(made)["parameters"].split > 0) == ("mesh.fsdp" in changes)


def test_the_table_of_a_state_is_for_people(program):
    head, *lines = state_text(program(**{"mesh.sharding": "replicated"})).splitlines()
    assert head.split() == ["state", "arrays", "bytes", "a", "device", "split"]
    assert [line.split()[0] for line in lines] == ["parameters", "statistics", "optimizer"]
    assert lines[1].split() == ["statistics", "4", "0.00", "MB", "0.00", "MB", "0.00%", "(0", "of", "4)"]


def written(made, tmp_path):
    write_parameter_table(made, tmp_path / "parameters.csv")
    with (tmp_path / "parameters.csv").open(newline="") as file:
        return {row.pop("path"): row for row in csv.DictReader(file)}


def test_every_parameter_has_a_row(program, tmp_path):
    rules = [{"match": "^conv1/", "scale": 0.1}]
    made = program(**{"mesh.fsdp": 4, "optimizer.weight_decay": 0.01, "optimizer.lr_scale": rules})
    rows = written(made, tmp_path)
    assert rows.keys() == made.model.params.keys()
    assert {path: int(rows[path]["count"]) for path in SIZES} == SIZES
    assert rows["conv2/kernel"]["shape"] == "3 x 3 x 8 x 16"
    assert (rows["conv1/kernel"]["lr_scale"], rows["conv2/kernel"]["lr_scale"]) == ("0.1", "1.0")
    assert float(rows["conv2/kernel"]["decay"]) == 0.01
    assert float(rows["bn1/scale"]["decay"]) == 0
    assert len({row["rule"] for row in rows.values()}) == 1


def test_rows_say_what_is_split_over_what(program, tmp_path):
    rows = written(program(**{"mesh.fsdp": 4}), tmp_path)
    assert (rows["conv2/kernel"]["split"], rows["conv2/kernel"]["optimizer_split"]) == ("- - - fsdp", "- - - fsdp")
    rows = written(program(**{"mesh.sharding": "zero1"}), tmp_path)
    assert (rows["conv2/kernel"]["split"], rows["conv2/kernel"]["optimizer_split"]) == ("", "- - - data")
    rows = written(program(**{"mesh.sharding": "replicated"}), tmp_path)
    assert {row["split"] + row["optimizer_split"] for row in rows.values()} == {""}


def test_the_share_that_is_split_is_one_of_bytes(program):
    made = program(**{"mesh.fsdp": 8})
    part = parts(made)["parameters"]
    sizes = {path: int(np.prod(leaf.shape)) for path, leaf in made.model.params.items()}
    whole = {path for path, leaf in made.state_shapes.params.items() if leaf.sharding.is_fully_replicated}
    assert part.split_bytes == 4 * sum(size for path, size in sizes.items() if path not in whole)
    assert f"{part.split_bytes / part.bytes:.2%} ({part.split} of {part.arrays})" in state_text(made)
