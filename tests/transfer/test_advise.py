"""The chooser's rules."""

import shlex
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import pcls
from pcls.errors import UserError
from pcls.planning.limits import Limits, limits_of
from pcls.pretrained.catalogue import catalogue
from pcls.transfer import advise as rules
from pcls.transfer.advise import (
    Facts,
    advise,
    chosen_plan,
    facts_of,
    fine_tuning_plan,
    is_restricted,
    small_network,
)

PHOTOS = Facts("photos", images=5000, classes=10, fewest=400, most=600, side=400, channels=3)
DEVICE = Limits("a device", "float32", 1e12, 1e11, 16 * 2**30, "made up")
HOUR = 3600.0


def values(advice):
    return {line.what: line.value for line in advice.lines}


def test_photographs_are_fine_tuned_from_the_most_accurate_weight_that_the_budget_allows():
    advice = advise(PHOTOS, DEVICE, HOUR)
    weight = catalogue()[advice.source]
    faster = chosen_plan(PHOTOS, DEVICE, HOUR / 20).weight
    assert advice.verb == "finetune"
    assert weight.top1 > faster.top1 > 0
    assert weight.flops > faster.flops


def test_a_budget_that_nothing_meets_gets_the_fastest_and_says_so():
    advice = advise(PHOTOS, DEVICE, 0.001)
    assert "nothing is faster" in next(line.reason for line in advice.lines if line.what == "model")


def test_weights_of_restricted_use_are_never_proposed():
    restricted = {weight.licence for weight in catalogue().values() if is_restricted(weight)}
    assert restricted == {"cc-by-nc-4.0", "fair-noncommercial-research-license"}
    assert chosen_plan(PHOTOS, replace(DEVICE, flops=1e18, bandwidth=1e18), HOUR).weight.licence not in restricted


def test_few_images_train_few_parameters():
    fast = replace(DEVICE, flops=1e18, bandwidth=1e18)
    assert chosen_plan(PHOTOS, fast, HOUR).weight.parameters > rules.FEW_PARAMETERS
    assert chosen_plan(replace(PHOTOS, images=100), fast, HOUR).weight.parameters <= rules.FEW_PARAMETERS


@pytest.mark.parametrize(("side", "size"), [(400, 224), (224, 224), (130, 160), (60, 96)])
def test_the_image_size_follows_the_images_up_to_that_of_the_weights(side, size):
    weight = catalogue()["resnet50.a1_in1k"]
    assert fine_tuning_plan(replace(PHOTOS, side=side), weight, DEVICE).size == size


def test_the_batch_is_halved_until_it_fits():
    weight = catalogue()["resnet50.a1_in1k"]
    small = replace(DEVICE, memory=2**30)
    plan, roomy = (fine_tuning_plan(PHOTOS, weight, limits) for limits in (small, DEVICE))
    assert plan.batch < roomy.batch == 32
    room = rules.MEMORY_SHARE * small.memory
    twice = 2 * plan.memory - rules.BYTES_A_PARAMETER * weight.parameters
    assert plan.memory <= room < twice
    assert plan.batch * plan.steps == pytest.approx(roomy.batch * roomy.steps, rel=0.01)


def test_weights_that_do_not_fit_the_memory_are_left_out():
    small = replace(DEVICE, memory=2**27)
    assert chosen_plan(PHOTOS, small, HOUR).memory <= rules.MEMORY_SHARE * small.memory
    with pytest.raises(UserError, match=r"no public weights fit the 0\.0 GiB of a device"):
        chosen_plan(PHOTOS, replace(DEVICE, memory=2**24), HOUR)


def test_time_grows_with_images_and_with_their_area():
    weight = catalogue()["resnet50.a1_in1k"]
    # Whole steps.
    some = replace(PHOTOS, side=96, images=4800)
    one, more, larger = (
        fine_tuning_plan(facts, weight, DEVICE) for facts in (some, replace(some, images=9600), replace(some, side=192))
    )
    assert more.worst == pytest.approx(2 * one.worst)
    assert larger.best == pytest.approx(4 * one.best)
    assert one.best < one.worst


@pytest.mark.parametrize(
    ("side", "channels", "model"), [(28, 1, "cnn28"), (32, 3, "resnet18_cifar"), (48, 3, "resnet18_cifar"), (49, 3, "")]
)
def test_small_images_get_a_network_of_their_own(side, channels, model):
    assert small_network(replace(PHOTOS, side=side, channels=channels)) == model


def test_unbalanced_classes_are_told():
    reasons = {most: advise(replace(PHOTOS, fewest=10, most=most), DEVICE, HOUR).lines[1].reason for most in (99, 100)}
    assert "unbalanced" in reasons[100] and "unbalanced" not in reasons[99]


def test_sequences_are_sent_elsewhere():
    with pytest.raises(UserError, match=r"no public weights for them; .*docs/recurrent\.md"):
        advise(replace(PHOTOS, sequences=True), DEVICE, HOUR)


def test_a_folder_is_looked_at_by_a_sample_and_a_damaged_picture_does_not_count(tmp_path):
    for name, count in (("cat", 12), ("dog", 4)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.fromarray(np.full((70, 90, 3), number, np.uint8)).save(tmp_path / name / f"{number}.png")
    (tmp_path / "cat" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    facts = facts_of(str(tmp_path))
    assert (facts.classes, facts.side, facts.channels) == (2, 70, 3)
    assert facts.most > facts.fewest


def test_the_proposed_command_is_one_that_the_recipe_takes():
    advice = pcls.advise("digits", device="v6e")
    assert values(advice)["model"] == "cnn28"
    words = shlex.split(advice.command("digits"))
    assert words[:3] == ["pcls", "train", "mnist_cnn"]
    from pcls.config import load_recipe

    recipe = load_recipe(words[2], words[3:])
    assert (recipe.data.source, recipe.model.name, recipe.data.image_size) == ("digits", "cnn28", 28)


def test_limits_are_documented_or_measured_or_refused():
    assert limits_of("t4").precision == "float32"
    assert limits_of("v6e").flops == 918e12
    measured = limits_of("cpu")
    assert measured.flops > 1e9 and measured.bandwidth > 1e8 and measured.source == "measured just now"
    with pytest.raises(UserError, match="no such chip here; known: cpu, v4, v5e"):
        limits_of("v99")
