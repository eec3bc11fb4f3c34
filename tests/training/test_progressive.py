"""Image sizes that change: which holds when, and what cannot be."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from pcls.config import load_recipe
from pcls.config.schema import DataSection
from pcls.data.preprocessing import Preprocessing
from pcls.errors import UserError
from pcls.training.program import make_program
from pcls.training.progressive import SizedStep, check_progressive, largest_size, size_at, sizes_from


def section(*phases, source="folder"):
    values = [{"until": until, "image_size": size} for until, size in phases]
    return DataSection.model_validate({"source": source, "progressive": values})


THREE = section(("2 epochs", 160), ("25 steps", 176), ("4 epochs", 192))


def test_each_phase_ends_before_the_step_it_names():
    # 10 steps an epoch: phases of steps 0 to 19, 20 to 24, 25 to 39.
    sizes = [size_at(THREE, step, 10, 256) for step in (0, 19, 20, 24, 25, 39, 40, 1000)]
    assert sizes == [160, 160, 176, 176, 192, 192, 256, 256]


def test_an_epoch_that_is_no_whole_number_of_steps_is_rounded():
    phases = section(("1 epochs", 160))
    assert [size_at(phases, step, 44.9375, 224) for step in (44, 45)] == [160, 224]


def test_without_phases_the_size_stays():
    assert size_at(section(), 0, 10, 224) == 224
    assert largest_size(section(), 100, 10, 224) == 224


def test_the_largest_size_is_one_that_the_run_gets_to():
    assert largest_size(THREE, 41, 10, 256) == 256
    assert largest_size(THREE, 40, 10, 256) == 192
    assert largest_size(THREE, 25, 10, 256) == 176
    assert largest_size(THREE, 1, 10, 256) == 160
    # A phase of larger images than the last.
    assert largest_size(section(("1 epochs", 320)), 100, 10, 256) == 320


def test_the_sizes_still_ahead_come_in_their_order():
    assert sizes_from(THREE, 0, 100, 10, 256) == [160, 176, 192, 256]
    assert sizes_from(THREE, 20, 100, 10, 256) == [176, 192, 256]
    assert sizes_from(THREE, 24, 40, 10, 256) == [176, 192]
    assert sizes_from(section(), 5, 100, 10, 224) == [224]


def test_each_size_is_compiled_once_in_order_while_the_first_trains():
    compiled, go_on = [], threading.Event()

    def compile_size(size):
        if size != 160:
            assert go_on.wait(10)
        compiled.append(size)
        return lambda state, batch: (state + 1, size)

    step = SizedStep(compile_size, [160, 192, 224])
    of_size = {size: SimpleNamespace(image=np.zeros((2, size, size, 3), np.uint8)) for size in (160, 192, 224)}
    assert step(0, of_size[160]) == (1, 160)
    assert compiled == [160]
    go_on.set()
    assert step(1, of_size[224]) == (2, 224)
    assert step(2, of_size[192]) == (3, 192)
    assert compiled == [160, 192, 224]


def test_what_has_not_begun_is_given_up():
    started, go_on = threading.Event(), threading.Event()
    compiled = []

    def compile_size(size):
        started.set()
        go_on.wait(10)
        compiled.append(size)

    step = SizedStep(compile_size, [160, 192])
    started.wait(10)
    step.close()
    go_on.set()
    step._steps[160].result()
    assert compiled == [160]


def complaint(phases, model="resnet18"):
    with pytest.raises(UserError) as raised:
        check_progressive(phases, model, 10)
    return str(raised.value)


def test_phases_in_order_of_files_are_fine():
    check_progressive(THREE, "resnet18", 10)
    check_progressive(section(), "cnn28", 10)


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
