"""Which layers form a group, which recipe is chosen, and what each sets."""

import re

import pytest

from pcls.models.registry import customary_model
from pcls.transfer.groups import layer_groups, pattern_of
from pcls.transfer.recipes import FEW, MANY, RECIPES, Network, choose


@pytest.mark.parametrize(
    ("model", "groups"),
    [
        ("cnn28", ["stem", "top", "head"]),
        ("lstm", ["recurrent/layers/0", "head"]),
        ("resnet18", ["stem", "stages/0", "stages/1", "stages/2", "stages/3", "head"]),
        ("convnext_atto", ["stem", "stages/0", "stages/1", "stages/2", "stages/3", "top", "head"]),
        ("lru", ["stem", "blocks/0", "blocks/1", "blocks/2", "blocks/3", "top", "head"]),
    ],
)
def test_groups_go_from_the_input_to_the_head(model, groups):
    definition = customary_model(model)
    paths = (*definition.params, *definition.stats)
    found = layer_groups(paths)
    assert list(found) == groups
    assert sorted(path for some in found.values() for path in some) == sorted(paths)
    for name, members in found.items():
        pattern = re.compile(pattern_of(name, members))
        assert [path for path in paths if pattern.search(path)] == list(members)


@pytest.mark.parametrize(
    ("images", "classes", "name"),
    [(45, 5, "probe"), (50, 5, "gradual"), (FEW - 1, 5, "gradual"), (FEW, 5, "full"), (MANY, 1000, "scratch")],
)
def test_the_recipe_goes_by_the_number_of_images(images, classes, name):
    chosen, reason = choose(images, classes, has_stages=True)
    assert chosen == name
    assert reason


@pytest.mark.parametrize(("images", "name"), [(5, "full"), (5_000, "full"), (MANY, "scratch")])
def test_small_networks_are_trained_as_a_whole(images, name):
    assert choose(images, 5, has_stages=False)[0] == name


def settings(name, model="resnet18", steps=100):
    definition = customary_model(model)
    return RECIPES[name](Network(layer_groups((*definition.params, *definition.stats)), "probe", steps, (28, 1)))


def test_gradual_sets_the_layers_free_from_the_top():
    freeze = settings("gradual")["optimizer.freeze"]
    assert freeze == [
        {"match": "^stages/3/", "until": "17 steps"},
        {"match": "^stages/2/", "until": "17 steps"},
        {"match": "^stages/1/", "until": "33 steps"},
        {"match": "^stages/0/", "until": "33 steps"},
        {"match": "^(bn1|conv1)/", "until": "50 steps"},
    ]


def test_what_is_drawn_anew_learns_from_the_start():
    assert settings("gradual", "cnn28")["optimizer.freeze"] == [{"match": "^(conv1|conv2)/", "until": "50 steps"}]


def test_a_hidden_layer_is_drawn_anew_with_the_head():
    assert settings("full", "cnn28")["transfer.skip"] == ["^dense/"]
    assert settings("full", "cnn28")["transfer.head"] == "new"
    assert settings("full")["transfer.skip"] == []
    assert settings("full")["transfer.head"] == "probe"


def test_the_lower_the_slower():
    scales = {rule["match"]: rule["scale"] for rule in settings("full")["optimizer.lr_scale"]}
    assert scales["^stages/3/"] == pytest.approx(0.65)
    assert scales["^(bn1|conv1)/"] == pytest.approx(0.65**5)
    assert "^head/" not in scales


def test_from_scratch_images_are_made_as_large_as_the_weights_saw_them():
    assert settings("scratch") == {
        "model.init": "",
        "data.image_size": 28,
        "data.channels": 1,
        "optimizer.warmup": "5 steps",
    }


def test_a_probe_trains_no_step():
    assert settings("probe") == {
        "transfer.head": "probe",
        "optimizer.freeze": [{"match": "^(?!head/)"}],
        "train.duration": "0 steps",
    }


@pytest.mark.parametrize("name", RECIPES)
def test_very_short_runs_have_a_recipe_too(name):
    assert settings(name, "cnn28", steps=2)
