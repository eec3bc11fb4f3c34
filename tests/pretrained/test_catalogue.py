"""The table of public weights, beside what timm published and what our models are."""

import csv

import jax
import jax.numpy as jnp
import pytest

from pcls.data.preprocessing import CROP_MODES, INTERPOLATIONS, Preprocessing, TrainingSize
from pcls.errors import UserError
from pcls.models.registry import MODELS, define_model
from pcls.nn.flops import analytic_flops
from pcls.pretrained.catalogue import FIELDS, TABLE, catalogue, find_weight, made_from, search_weights
from pcls.pretrained.names import TIMM


def rows():
    with TABLE.open(encoding="utf-8", newline="") as file:
        file.readline()
        return list(csv.DictReader(file))


def test_the_catalogue_holds_the_weights_of_every_architecture_that_can_be_imported():
    """Where this fails, the registry has grown: run benchmarks/catalogue.py again."""
    known = {row["name"].partition(".")[0] for row in rows()}
    assert {weight.architecture for weight in catalogue().values()} == known & set(MODELS) & set(TIMM)
    assert len(catalogue()) >= 80


def test_every_row_is_whole():
    for row in rows():
        assert tuple(row) == FIELDS
        assert row["hub"] == f"timm/{row['name']}"
        assert row["crop_mode"] in CROP_MODES
        assert row["interpolation"] in INTERPOLATIONS
        assert row["task"] == "features" or int(row["classes"]) > 0
        assert 32 <= int(row["train_size"]) <= 512


def test_the_first_line_says_where_it_is_from():
    assert made_from().startswith("timm 1.")
    assert "(Apache-2.0), 20" in made_from()


def test_a_weight_is_what_timm_published():
    weight = find_weight("resnet50.a1_in1k")
    assert weight.preprocessing == Preprocessing(
        *(288, 288, 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1.0, "center", "bicubic"),
        train=TrainingSize(224, 224, 0.95),
    )
    assert (weight.hub, weight.licence, weight.classes) == ("timm/resnet50.a1_in1k", "apache-2.0", 1000)
    assert (weight.top1, weight.top5, weight.published_size) == (81.24, 95.112, 288)
    assert weight.parameters == 25_557_032


def test_weights_of_one_size_have_no_other_for_training():
    assert find_weight("resnet50.fb_swsl_ig1b_ft_in1k").preprocessing.train is None


def test_accuracies_are_those_of_the_published_table(shared_data):
    with (shared_data / "timm" / "results-imagenet.csv").open(encoding="utf-8", newline="") as file:
        published = {(row["model"], int(row["img_size"])): float(row["top1"]) for row in csv.DictReader(file)}
    found = {(weight.name, weight.published_size): weight.top1 for weight in catalogue().values() if weight.top1}
    assert len(found) >= 60
    assert found == {key: published[key] for key in found}
    for weight in catalogue().values():
        assert weight.published_size in (None, weight.preprocessing.height)


@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "resnet50.bamboo"])
def test_costs_are_those_of_our_models(name):
    weight = find_weight(name)
    size = weight.preprocessing.height
    model = define_model(weight.architecture, height=size, width=size, channels=3, classes=weight.classes or 1)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    assert weight.flops == analytic_flops(model.apply, model.params, model.stats, image)
    head = 0 if weight.classes else sum(leaf.size for path, leaf in model.params.items() if path.startswith("head/"))
    assert weight.parameters == model.parameter_count - head


def names(**asked):
    return [weight.name for weight in search_weights(**asked)]


def test_each_filter_leaves_out_what_does_not_fit():
    everything = set(names())
    assert set(names(text="resnet18.")) == {name for name in everything if name.startswith("resnet18.")}
    for weight in search_weights(max_parameters=12e6, max_flops=4e9, min_top1=70, licence="APACHE"):
        assert weight.parameters <= 12e6
        assert weight.flops <= 4e9
        assert weight.top1 >= 70
        assert weight.licence == "apache-2.0"
    assert "resnet18.fb_swsl_ig1b_ft_in1k" in names(max_parameters=12e6, max_flops=4e9, min_top1=70)
    assert "resnet18.fb_swsl_ig1b_ft_in1k" not in names(licence="apache")
    assert "resnet50.bamboo" in names(task="features")
    assert "resnet50.bamboo" not in names(task="classification")
    assert "resnet50.bamboo" not in names(min_top1=0.1)


def test_the_best_come_first_and_the_smallest_come_first():
    accuracies = [weight.top1 or 0 for weight in search_weights(sort="top1")]
    assert accuracies == sorted(accuracies, reverse=True)
    sizes = [weight.parameters for weight in search_weights(sort="params")]
    assert sizes == sorted(sizes)


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(UserError, match=r"no weight 'resnet50\.a1_in1'; the nearest are resnet50\.a1_in1k, "):
        find_weight("resnet50.a1_in1")
    with pytest.raises(UserError, match="pcls models search lists all"):
        find_weight("?")
