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
    batch_size,
    choose_weight,
    estimated,
    facts_of,
    image_size,
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
    faster = choose_weight(PHOTOS, DEVICE, HOUR / 20)
    assert advice.verb == "finetune"
    assert weight.top1 > faster.top1 > 0
    assert weight.flops > faster.flops


def test_a_budget_that_nothing_meets_gets_the_fastest_and_says_so():
    advice = advise(PHOTOS, DEVICE, 0.001)
    assert "nothing is faster" in next(line.reason for line in advice.lines if line.what == "model")


def test_weights_of_restricted_use_are_never_proposed():
    restricted = {weight.licence for weight in catalogue().values() if rules._is_restricted(weight)}
    assert restricted == {"cc-by-nc-4.0", "fair-noncommercial-research-license"}
    assert choose_weight(PHOTOS, replace(DEVICE, flops=1e18, bandwidth=1e18), HOUR).licence not in restricted


def test_few_images_train_few_parameters():
    fast = replace(DEVICE, flops=1e18, bandwidth=1e18)
    assert choose_weight(PHOTOS, fast, HOUR).parameters > rules.FEW_PARAMETERS
    assert choose_weight(replace(PHOTOS, images=100), fast, HOUR).parameters <= rules.FEW_PARAMETERS


@pytest.mark.parametrize(("side", "size"), [(400, 224), (224, 224), (130, 160), (60, 96)])
def test_the_image_size_follows_the_images_up_to_that_of_the_weights(side, size):
    weight = catalogue()["resnet50.a1_in1k"]
    assert image_size(replace(PHOTOS, side=side), weight) == size


def test_the_batch_is_halved_until_it_fits():
    weight = catalogue()["resnet50.a1_in1k"]
    small = replace(DEVICE, memory=2**30)
    batch = batch_size(PHOTOS, weight, small)
    assert batch < batch_size(PHOTOS, weight, DEVICE) == 32
    room = rules.MEMORY_SHARE * small.memory
    assert rules.step_bytes(weight, 224, batch, small) <= room < rules.step_bytes(weight, 224, 2 * batch, small)


def test_time_grows_with_images_and_with_their_area():
    weight = catalogue()["resnet50.a1_in1k"]
    one = estimated(weight, 112, 32, 100, DEVICE)
    assert estimated(weight, 112, 32, 200, DEVICE).worst == pytest.approx(2 * one.worst)
    assert estimated(weight, 224, 32, 100, DEVICE).best == pytest.approx(4 * one.best)
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
