"""What a plan says, on numbers that are easy to check by hand."""

import json
from dataclasses import replace

import pytest

from pcls.config import load_recipe
from pcls.errors import UserError
from pcls.observe.chips import CHIPS, GIB
from pcls.planning.costs import Collective, Costs, Memory
from pcls.planning.plan import Attempt, RecipePlan, data_facts
from pcls.planning.roofline import roofline
from pcls.planning.text import plan_json, plan_text, require_fit
from pcls.training.program import make_program

V6E = next(chip for chip in CHIPS if chip.name == "TPU v6e")
MEMORY = Memory(
    arguments=4 * GIB, outputs=2 * GIB, aliased=2 * GIB, temporaries=10 * GIB, code=GIB, compiler_peak=12 * GIB
)
# 4 images a device: 9.18 GFLOP are 10 us, 16.38 MB are 10 us, too.
COSTS = Costs(
    devices=8,
    memory=MEMORY,
    flops=4 * 9.18e9,
    bytes_accessed=4 * 16.38e6,
    collectives=(
        Collective("all-reduce", 100_000_000, 8),
        Collective("all-reduce", 1_000_000, 8, count=2),
        Collective("all-gather", 3_000_000, 8),
    ),
    donated=17,
)
RECIPE = load_recipe("digits_rnn", {"data.image_size": 10, "train.batch_size": 32})


@pytest.fixture(scope="module")
def program():
    return make_program(RECIPE, data_facts(RECIPE).preprocessing, classes=10, records=1438)


@pytest.fixture
def made(program):
    """A function from costs and facts to a plan for eight v6e chips."""

    def make(costs=COSTS, needed=15 * GIB, limit=32 * GIB, chip=V6E, recipe=RECIPE, **changes):
        attempt = Attempt(32, needed, limit, costs, 61.0)
        bounds = None if costs is None else roofline(costs, chip, 4, forward_flops=1.5e9)
        settings = {
            "recipe": recipe,
            "topology": "v6e:2x4",
            "devices": 8,
            "chip": chip,
            "program": program,
            "attempt": attempt,
            "prediction": bounds,
            "largest_batch": 64,
        }
        return RecipePlan(**settings | changes)

    return make


def test_a_plan_is_a_screen_of_numbers(made):
    lines = plan_text(made()).splitlines()
    assert lines[0] == "rnn28 on v6e:2x4 (8 x TPU v6e): 32 images a step, 4 a device"
    assert [line.split()[0] for line in lines[1:4]] == ["state", "parameters", "optimizer"]
    assert lines[4:] == [
        "memory         15.00 GiB a device of 32.00 GiB (47%): arguments 4.000  outputs 2.000  donated -2.000  "
        "temporary 10.000  code 1.000",
        "an image       9.18 GFLOP, 16.38 MB of HBM traffic",
        "collectives    3 all-reduce (102 MB), 1 all-gather (3 MB)",
        # 2 * 7/8 * 102 MB + 7/8 * 3 MB over 400 GB/s.
        "bound          network: compute 0.04 ms, memory 0.04 ms, network 0.4528 ms",
        "images/s       60,059 to 70,669 (7,507 to 8,834 a chip)",
        # 3 * 1.5 GFLOP an image of 918 TFLOP/s.
        "MFU            3.7% to 4.3%",
        "largest batch  64, 8 a device",
        "compiled in    61 s",
    ]


def test_a_plan_without_a_documented_chip_says_why_it_predicts_nothing(made):
    lines = plan_text(made(chip=None, limit=None, largest_batch=None)).splitlines()
    assert lines[0] == "rnn28 on v6e:2x4 (8 devices): 32 images a step, 4 a device"
    assert lines[4].startswith("memory         15.00 GiB a device: arguments 4.000")
    assert lines[-2:] == [
        "prediction     none: the limits of these devices are not documented",
        "compiled in    61 s",
    ]


def test_one_device_has_no_collectives(made):
    assert "collectives    none" in plan_text(made(replace(COSTS, collectives=()))).splitlines()


def test_the_text_of_what_does_not_fit_has_no_invented_numbers(made):
    text = plan_text(made(None, needed=40 * GIB))
    assert [line.split()[0] for line in text.splitlines()] == [
        "rnn28",
        "state",
        "parameters",
        "optimizer",
        "largest",
        "compiled",
    ]


def test_json_has_the_numbers_of_a_step(made):
    found = json.loads(json.dumps(plan_json(made()), allow_nan=False))
    assert found["fits"] is True
    assert (found["batch_size"], found["images_per_device"], found["largest_batch"]) == (32, 4, 64)
    assert (found["needed_bytes"], found["limit_bytes"]) == (15 * GIB, 32 * GIB)
    assert found["memory"] == vars(MEMORY) | {"peak": 15 * GIB}
    assert found["flops_per_image"] == pytest.approx(9.18e9)
    assert found["hbm_bytes_per_image"] == pytest.approx(16.38e6)
    assert found["all_reduces"] == 3
    assert found["collectives"] == {
        "all-reduce": {"count": 3, "bytes": 102_000_000},
        "all-gather": {"count": 1, "bytes": 3_000_000},
    }
    assert (found["largest_all_gather"], found["donated_buffers"]) == (3_000_000, 17)
    assert found["bound"] == "network"
    assert found["images_per_second"] == pytest.approx([60_058.65, 70_669.43], rel=1e-6)
    assert [part["name"] for part in found["state"]] == ["parameters", "optimizer"]


def test_json_of_what_does_not_fit_has_the_same_keys(made):
    fits, does_not = plan_json(made()), plan_json(made(None, needed=40 * GIB))
    assert fits.keys() == does_not.keys()
    assert (does_not["fits"], does_not["needed_bytes"], does_not["limit_bytes"]) == (False, 40 * GIB, 32 * GIB)
    for key in ("memory", "hbm_bytes_per_image", "all_reduces", "images_per_second", "bound", "mfu"):
        assert does_not[key] is None


def complaint(plan):
    with pytest.raises(UserError) as raised:
        require_fit(plan)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def test_what_fits_is_left_alone_and_so_is_what_nobody_can_know(made):
    require_fit(made())
    require_fit(made(chip=None, limit=None))


def test_what_does_not_fit_says_the_compilers_numbers_and_what_to_change(made):
    assert complaint(made(None, needed=40 * GIB, limit=31.25 * GIB, largest_batch=24)) == (
        "rnn28 does not fit on v6e:2x4: a step of 32 images needs 40.00 GiB of 31.25 GiB a device; "
        "train.batch_size=24 fits; change train.batch_size, train.accumulate=2, mesh.fsdp"
    )


def test_what_is_no_choice_any_more_is_not_proposed(made):
    recipe = load_recipe("folder_resnet18", {"train.accumulate": 4, "mesh.fsdp": 2})
    plan = made(None, needed=None, largest_batch=None, recipe=recipe)
    assert complaint(plan) == (
        "resnet18 does not fit on v6e:2x4: a step of 32 images needs more than 32.00 GiB a device; "
        "change train.batch_size, train.accumulate=8, model.remat"
    )
    remat = load_recipe("folder_resnet18", {"model.remat": ["inputs"] * 4})
    assert complaint(made(None, recipe=remat, devices=1)).endswith("change train.batch_size, train.accumulate=2")
