"""Image sizes that change: which holds when, and what cannot be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcls.config import load_recipe
from pcls.config.data import DataSection
from pcls.data.pipeline import Update
from pcls.data.preprocessing import Preprocessing
from pcls.errors import UserError
from pcls.training.program import make_program
from pcls.training.progressive import Phase, Phases, check_progressive, phases_of


def section(*phases, source="folder"):
    values = [dict(zip(("until", "image_size", "batches"), phase, strict=False)) for phase in phases]
    return DataSection.model_validate({"source": source, "progressive": values})


THREE = section(("2 epochs", 160), ("25 steps", 176), ("4 epochs", 192))
GROWN = section(("2 epochs", 128, 4), ("27 steps", 176, 3))


def three(steps: int):
    """Of 10 steps an epoch: phases of steps 0 to 19, 20 to 24, 25 to 39."""
    return phases_of(THREE, steps, 10, (256, 256))


def square(start: int, end: int, size: int, batches: int) -> Phase:
    return Phase(start, end, size, size, batches)


def test_each_phase_ends_before_the_step_it_names():
    sizes = [three(50).update_at(step).height for step in (0, 19, 20, 24, 25, 39, 40, 1000)]
    assert sizes == [160, 160, 176, 176, 192, 192, 256, 256]


def test_an_epoch_that_is_no_whole_number_of_steps_is_rounded():
    phases = phases_of(section(("1 epochs", 160)), 100, 44.9375, (224, 224))
    assert [phases.update_at(step).height for step in (44, 45)] == [160, 224]


def test_without_phases_the_size_stays():
    phases = phases_of(section(), 100, 10, (28, 32))
    assert phases == Phases((Phase(0, 100, 28, 32, 1),))
    assert phases.updates_from(7) == range(7, 100)
    assert phases.programs_from(7) == [phases.largest] == [Update(28, 32)]
    assert (phases.began(7), phases.relative_area(7)) == (6, 1.0)


def test_the_largest_update_is_one_that_the_run_gets_to():
    assert [three(steps).largest.height for steps in (41, 40, 25, 1)] == [256, 192, 176, 160]
    # A phase of larger images than the last, and one of more of them.
    assert phases_of(section(("1 epochs", 320)), 100, 10, (256, 256)).largest == Update(320, 320, 1)
    assert phases_of(section(("1 epochs", 128, 5)), 100, 10, (256, 256)).largest == Update(128, 128, 5)


def test_the_area_of_a_finished_step_is_that_of_its_phase():
    assert [three(50).relative_area(step) for step in (20, 21, 41)] == [(160 / 256) ** 2, (176 / 256) ** 2, 1]


def test_a_phase_of_grown_batches_ends_on_a_whole_update():
    # 20 steps are 5 updates of 4; from 20 to 27 are 7, of which 2 updates of 3 come closest.
    phases = phases_of(GROWN, 30, 10, (256, 256))
    assert phases == Phases((square(0, 20, 128, 4), square(20, 26, 176, 3), square(26, 30, 256, 1)))
    assert phases.updates_from(0) == [0, 4, 8, 12, 16, 20, 23, 26, 27, 28, 29]
    assert phases.updates_from(8) == [8, 12, 16, 20, 23, 26, 27, 28, 29]
    assert [phases.began(step) for step in (4, 8, 23, 26, 27)] == [0, 4, 20, 23, 26]


@given(steps=st.integers(1, 60), first=st.integers(0, 59))
def test_the_updates_take_every_step_once(steps, first):
    phases = phases_of(GROWN, steps, 10, (256, 256))
    step = 0
    for begins in phases.updates_from(0):
        assert begins == step
        step += phases.update_at(begins).batches
        assert phases.began(step) == begins
    assert step == steps
    if first in phases.updates_from(0):
        assert list(phases.updates_from(first)) == [step for step in phases.updates_from(0) if step >= first]
        kinds = [phases.update_at(step) for step in phases.updates_from(first)]
        assert phases.programs_from(first) == list(dict.fromkeys(kinds))


def test_batches_after_the_run_come_singly():
    # Statistics are recalibrated over steps after the last one.
    assert phases_of(GROWN, 10, 10, (256, 256)).update_at(10) == Update(128, 128, 1)


def test_the_programs_still_ahead_come_in_their_order():
    assert [size for size, _, _ in three(100).programs_from(0)] == [160, 176, 192, 256]
    assert [size for size, _, _ in three(100).programs_from(20)] == [176, 192, 256]
    assert [size for size, _, _ in three(40).programs_from(24)] == [176, 192]
    # A run that ends within a phase has a last update of its own kind.
    assert phases_of(GROWN, 10, 10, (256, 256)).programs_from(0) == [Update(128, 128, 4), Update(128, 128, 2)]


def complaint(phases, model="resnet18"):
    with pytest.raises(UserError) as raised:
        check_progressive(phases, model, 10)
    return str(raised.value)


def test_phases_in_order_of_files_are_fine():
    assert check_progressive(THREE, "resnet18", 10) is None
    assert check_progressive(section(), "cnn28", 10) is None


@pytest.mark.parametrize("ends", [("2 epochs", "1 epochs"), ("2 epochs", "20 steps"), ("0 steps", "2 epochs")])
def test_a_phase_without_a_step_is_refused(ends):
    phases = section(*((end, 160) for end in ends))
    assert complaint(phases) == "data.progressive: each phase must end after the one before it; order them by `until`"


def test_what_knows_one_size_only_is_refused():
    assert "the weights of cnn28 are made for one image size" in complaint(THREE, "cnn28")
    assert "digits keeps pixels of one size" in complaint(section(("1 epochs", 32), source="digits"))
    phases = section(("1 epochs", 32), ("2 epochs", 16))
    assert complaint(phases) == "data.progressive: resnet18 needs images of 32 or more, and a phase has 16"


def test_a_program_is_planned_for_the_largest_images():
    recipe = load_recipe("imagenet_resnet50_fast", {"model.name": "resnet18_cifar"})
    preprocessing = Preprocessing(256, 256, 3, (0.5,) * 3, (0.5,) * 3)
    program = make_program(recipe, preprocessing, classes=10, records=1_281_167)
    assert program.batch_shapes.image.shape == (2048, 192, 192, 3)
    assert program.plan.at_once == 1
