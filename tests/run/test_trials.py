"""What a sweep tries, from command lines; nothing is trained."""

import math
from collections import Counter

import pytest

from pcls.config import load_recipe
from pcls.errors import UserError
from pcls.run.trials import (
    Choices,
    Span,
    base_recipe,
    checked_strategy,
    command,
    promoted,
    read_space,
    rung_shares,
    settings,
    shortened,
    trials_of,
)


def test_ranges_and_lists_are_told_from_fixed_values():
    space = read_space(
        [
            "optimizer.lr=log:1e-4..1e-1",
            "model.dropout=0..0.5",
            "train.batch_size=16..18",
            "model.name=cnn28,rnn28",
            "model.widths=[8,16],[4, 8, 8]",
            "data.path=../data",
            "train.duration=5 epochs",
            "train.seed=0..2",
        ]
    )
    assert space.swept == {
        "optimizer.lr": Span(1e-4, 1e-1, log=True, whole=False),
        "model.dropout": Span(0, 0.5, log=False, whole=False),
        "train.batch_size": Choices(("16", "17", "18")),
        "model.name": Choices(("cnn28", "rnn28")),
        "model.widths": Choices(("[8,16]", "[4, 8, 8]")),
    }
    assert space.fixed == ("data.path=../data", "train.duration=5 epochs")
    assert space.seeds == ("0", "1", "2")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optimizer.lrr=1,2", "unknown key 'optimizer.lrr'; the nearest is 'optimizer.lr'"),
        ("optimizer.lr", "has no '='; write key=value"),
        ("optimizer.lr=log:0..1", "two numbers a < b are needed, both above 0"),
        ("optimizer.lr=1..0", "two numbers a < b are needed, as in"),
        ("optimizer.lr=log:1e-4", "two numbers a < b are needed"),
        ("optimizer.lr=a..b", "two numbers a < b are needed"),
        ("optimizer.lr=nan..1", "two numbers a < b are needed"),
        ("optimizer.lr=0..inf", "two numbers a < b are needed"),
        ("train.batch_size=0.5..3", "is a range of whole numbers"),
        ("train.batch_size=1..1000000", "more than 10,000 values"),
        ("train.seed=log:1..9", "has no order to draw from"),
        ("model.name=log:a..b", "log:a..b is for numbers"),
        ("model.name=cnn28,cnn28", "a list of different values"),
        ("model.name=cnn28,", "a list of different values"),
        ("run.dir=a,b", "run.dir is chosen by the sweep"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(argument, message):
    with pytest.raises(UserError) as caught:
        read_space([argument])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_is_swept_once():
    with pytest.raises(UserError, match=r"optimizer\.lr is swept twice"):
        read_space(["optimizer.lr=1,2", "optimizer.lr=3,4"])


def test_a_grid_has_every_combination_once_in_order():
    space = read_space(["optimizer.lr=0.1,0.2", "train.batch_size=16,32,64"])
    found = settings(space, "grid", 0, seed=5)
    assert len(found) == len(set(found)) == 6
    assert found[1] == (("optimizer.lr", "0.1"), ("train.batch_size", "32"))


@pytest.mark.parametrize(("arguments", "count"), [("0..1", 10), ("1,2", 2)])
def test_ten_settings_are_drawn_where_nobody_says_how_many(arguments, count):
    assert len(settings(read_space([f"optimizer.lr={arguments}"]), "halving", 0, 0)) == count


@pytest.mark.parametrize(
    ("arguments", "strategy", "trials", "message"),
    [
        (["optimizer.lr=0..1"], "grid", 0, "optimizer.lr: a grid needs a list"),
        (["optimizer.lr=1,2"], "grid", 3, "--trials has no effect with --strategy grid"),
        (["optimizer.lr=1,2"], "random", -1, "--trials is -1; with --strategy random 1 or more"),
        (["optimizer.lr=1"], "random", 3, "no key has a range or a list"),
        (["optimizer.lr=0..1"], "halving", 10**6, "10,000 at most"),
        (["train.batch_size=1..200", "data.split_seed=0..200"], "grid", 0, "more than 10,000 points"),
    ],
)
def test_numbers_that_are_none_of_the_strategy_are_refused(arguments, strategy, trials, message):
    with pytest.raises(UserError, match=message):
        settings(read_space(arguments), strategy, trials, 0)


def test_draws_depend_on_the_seed_alone_and_are_spread_over_the_logarithm():
    space = read_space(["optimizer.lr=log:1e-4..1e0", "train.batch_size=log:16..512"])
    drawn = settings(space, "random", 400, seed=1)
    assert drawn == settings(space, "random", 400, seed=1)
    assert drawn != settings(space, "random", 400, seed=2)
    # A longer sweep begins with the shorter one.
    assert drawn[:10] == settings(space, "random", 10, seed=1)
    rates, sizes = ([float(dict(setting)[key]) for setting in drawn] for key in ("optimizer.lr", "train.batch_size"))
    decades = Counter(math.floor(math.log10(rate)) for rate in rates)
    assert all(70 < decades[decade] < 130 for decade in (-4, -3, -2, -1))
    assert all(size.is_integer() and 16 <= size <= 512 for size in sizes)


def test_lists_are_drawn_without_repetition_and_no_more_than_there_are():
    space = read_space(["optimizer.lr=0.1,0.2,0.3", "train.batch_size=16,32"])
    assert len(set(settings(space, "random", 4, seed=0))) == 4
    assert len(set(settings(space, "random", 50, seed=0))) == 6
    # Nothing but the seed is swept: there is one setting.
    assert settings(read_space(["train.seed=0..3"]), "random", 5, seed=0) == [()]


def test_a_setting_is_trained_with_every_seed():
    space = read_space(["optimizer.lr=0.1,0.2", "train.seed=3,4", "data.image_size=10"])
    trials = trials_of(base_recipe("digits_cnn", space), space, enumerate(settings(space, "grid", 0, 0)))
    assert [trial.name for trial in trials] == ["0000-seed3", "0000-seed4", "0001-seed3", "0001-seed4"]
    assert [(t.recipe.optimizer.lr, t.recipe.train.seed, t.recipe.data.image_size) for t in trials] == [
        (0.1, 3, 10),
        (0.1, 4, 10),
        (0.2, 3, 10),
        (0.2, 4, 10),
    ]


def test_a_setting_that_is_no_recipe_is_refused_before_anything_starts():
    space = read_space(["optimizer.lr=-1,1"])
    with pytest.raises(UserError, match=r"override optimizer\.lr: optimizer\.lr is -1"):
        trials_of(base_recipe("digits_cnn", space), space, enumerate(settings(space, "grid", 0, 0)))


def test_rungs_end_with_the_whole_duration_for_the_last_setting():
    assert rung_shares(9, "halving") == [1 / 9, 1 / 3, 1]
    assert rung_shares(4, "halving") == [1 / 3, 1]
    assert rung_shares(2, "halving") == rung_shares(9, "random") == [1]
    assert [promoted(count) for count in (9, 4, 3, 1)] == [3, 1, 1, 1]


def test_a_short_rung_has_the_shape_of_the_whole_schedule():
    recipe = load_recipe(
        "digits_cnn",
        {
            "train.duration": "90 epochs",
            "optimizer.warmup": "9 epochs",
            "optimizer.schedule": "wsd",
            "optimizer.cooldown": "40 steps",
            "evaluate.every": "3 epochs",
            "data.source": "folder",
            "data.path": "somewhere",
            "data.progressive": [{"until": "30 epochs", "image_size": 16}],
        },
    )
    short = shortened(recipe, 1 / 9)
    assert str(short.train.duration) == "10 epochs"
    assert (str(short.optimizer.warmup), str(short.optimizer.cooldown)) == ("1 epochs", "4 steps")
    assert short.data.progressive[0].until.value == 3.333
    assert short.evaluate == recipe.evaluate
    assert shortened(recipe, 1) == recipe


def test_the_command_of_a_setting_can_be_typed():
    space = read_space(["optimizer.lr=0.1,0.2", "train.duration=5 epochs"])
    setting = settings(space, "grid", 0, 0)[1]
    assert command("digits_cnn", space, setting) == "pcls train digits_cnn 'train.duration=5 epochs' optimizer.lr=0.2"


def test_unknown_strategies_are_refused():
    with pytest.raises(UserError, match=r"--strategy 'bayes': one of random, grid, halving is needed"):
        checked_strategy("bayes")
