"""Image sizes that change: which holds when, and what cannot be."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcls.config import load_recipe
from pcls.config.schema import DataSection
from pcls.data.pipeline import Update
from pcls.data.preprocessing import Preprocessing
from pcls.errors import UserError
from pcls.training.program import make_program
from pcls.training.progressive import (
    Phase,
    SizedStep,
    check_progressive,
    largest_update,
    phase_at,
    phases_of,
    programs_from,
    update_at,
    updates_from,
)


def section(*phases, source="folder"):
    values = [dict(zip(("until", "image_size", "batches"), phase, strict=False)) for phase in phases]
    return DataSection.model_validate({"source": source, "progressive": values})


THREE = section(("2 epochs", 160), ("25 steps", 176), ("4 epochs", 192))
GROWN = section(("2 epochs", 128, 4), ("27 steps", 176, 3))


def three(steps: int):
    """Of 10 steps an epoch: phases of steps 0 to 19, 20 to 24, 25 to 39."""
    return phases_of(THREE, steps, 10, 256)


def test_each_phase_ends_before_the_step_it_names():
    sizes = [phase_at(three(50), step).image_size for step in (0, 19, 20, 24, 25, 39, 40, 1000)]
    assert sizes == [160, 160, 176, 176, 192, 192, 256, 256]


def test_an_epoch_that_is_no_whole_number_of_steps_is_rounded():
    phases = phases_of(section(("1 epochs", 160)), 100, 44.9375, 224)
    assert [phase_at(phases, step).image_size for step in (44, 45)] == [160, 224]


def test_without_phases_the_size_stays():
    assert phases_of(section(), 100, 10, 224) == (Phase(0, 100, 224, 1),)
    assert update_at((), 7) == Update()


def test_the_largest_update_is_one_that_the_run_gets_to():
    assert [largest_update(three(steps)).image_size for steps in (41, 40, 25, 1)] == [256, 192, 176, 160]
    # A phase of larger images than the last, and one of more of them.
    assert largest_update(phases_of(section(("1 epochs", 320)), 100, 10, 256)) == Update(320, 1)
    assert largest_update(phases_of(section(("1 epochs", 128, 5)), 100, 10, 256)) == Update(128, 5)


def test_a_phase_of_grown_batches_ends_on_a_whole_update():
    # 20 steps are 5 updates of 4; from 20 to 27 are 7, of which 2 updates of 3 come closest.
    phases = phases_of(GROWN, 30, 10, 256)
    assert phases == (Phase(0, 20, 128, 4), Phase(20, 26, 176, 3), Phase(26, 30, 256, 1))
    assert updates_from(phases, 0) == [0, 4, 8, 12, 16, 20, 23, 26, 27, 28, 29]
    assert updates_from(phases, 8) == [8, 12, 16, 20, 23, 26, 27, 28, 29]


@given(steps=st.integers(1, 60), first=st.integers(0, 59))
def test_the_updates_take_every_step_once(steps, first):
    phases = phases_of(GROWN, steps, 10, 256)
    step = 0
    for begins in updates_from(phases, 0):
        assert begins == step
        step += update_at(phases, begins).batches
    assert step == steps
    if first in updates_from(phases, 0):
        assert updates_from(phases, first) == [step for step in updates_from(phases, 0) if step >= first]
        kinds = [update_at(phases, step) for step in updates_from(phases, first)]
        assert programs_from(phases, first) == list(dict.fromkeys(kinds))


def test_batches_after_the_run_come_singly():
    # Statistics are recalibrated over steps after the last one.
    assert update_at(phases_of(GROWN, 10, 10, 256), 10) == Update(128, 1)


def test_the_programs_still_ahead_come_in_their_order():
    assert [size for size, _ in programs_from(three(100), 0)] == [160, 176, 192, 256]
    assert [size for size, _ in programs_from(three(100), 20)] == [176, 192, 256]
    assert [size for size, _ in programs_from(three(40), 24)] == [176, 192]
    # A run that ends within a phase has a last update of its own kind.
    assert programs_from(phases_of(GROWN, 10, 10, 256), 0) == [Update(128, 4), Update(128, 2)]


def batch_of(update: Update) -> SimpleNamespace:
    """Of two images a batch."""
    size, batches = update
    return SimpleNamespace(image=np.zeros((2 * batches, size, size, 3), np.uint8))


def test_each_kind_is_compiled_once_in_order_while_the_first_trains():
    compiled, go_on = [], threading.Event()
    first, second, third = kinds = [Update(160, 3), Update(192, 1), Update(224, 1)]

    def compile_kind(update):
        if update != first:
            assert go_on.wait(10)
        compiled.append(update)
        return lambda state, batch: (state + 1, update)

    step = SizedStep(compile_kind, kinds, batch_size=2)
    assert step(0, batch_of(first)) == (1, first)
    assert compiled == [first]
    go_on.set()
    assert step(1, batch_of(third)) == (2, third)
    assert step(2, batch_of(second)) == (3, second)
    assert compiled == kinds


def test_what_has_not_begun_is_given_up():
    started, go_on = threading.Event(), threading.Event()
    compiled = []

    def compile_kind(update):
        started.set()
        go_on.wait(10)
        compiled.append(update)

    step = SizedStep(compile_kind, [Update(160), Update(192)], batch_size=2)
    started.wait(10)
    step.close()
    go_on.set()
    step._steps[Update(160)].result()
    assert compiled == [Update(160)]


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
