"""Recipes from files and overrides: what they become, and the one line that says what is wrong with them."""

import math
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pcls.config import (
    Duration,
    Recipe,
    dump_recipe,
    find_recipe,
    flat_recipe,
    load_recipe,
    named_recipes,
    with_overrides,
)
from pcls.config.optimizer import OPTIMIZERS, SCHEDULES, OptimizerSection
from pcls.errors import UserError

# A fixture's folder may serve all examples: each writes its file anew.
SHARED_FOLDER = [HealthCheck.function_scoped_fixture]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Writes a text to mine.yaml and loads it from there."""
    monkeypatch.chdir(tmp_path)

    def from_text(text: str | bytes, overrides=()) -> Recipe:
        Path("mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        return load_recipe("mine.yaml", overrides)

    return from_text


@pytest.fixture
def complaint(load):
    """The error of a recipe's text, checked to be one line."""

    def of(text: str | bytes, overrides=()) -> str:
        with pytest.raises(UserError) as raised:
            load(text, overrides)
        assert raised.value.exit_code == 2
        assert len(str(raised.value).splitlines()) == 1
        return str(raised.value)

    return of


# What is read


def test_an_empty_file_is_the_default_recipe(load):
    assert load("") == with_overrides(Recipe(), {"run.dir": "runs/mine"})
    assert load("# nothing but a comment\n") == load("")


def test_the_file_sets_what_it_names_and_nothing_else(load):
    recipe = load("train: {batch_size: 64, duration: 600 steps}\noptimizer:\n  lr: 1.0e-2\n")
    changed = {key: v for key, v in flat_recipe(recipe).items() if v != flat_recipe(Recipe())[key]}
    assert changed == {
        "run.dir": "runs/mine",
        "train.batch_size": 64,
        "train.duration": "600 steps",
        "optimizer.lr": 0.01,
    }


def test_a_whole_number_serves_where_a_fraction_may_stand(load):
    lr = load("optimizer: {lr: 1}").optimizer.lr
    assert (lr, type(lr)) == (1.0, float)


def test_overrides_win_over_the_file(load):
    assert load("train: {batch_size: 64}", ["train.batch_size=32"]).train.batch_size == 32
    assert load("train: {batch_size: 64}", {"train.batch_size": 16}).train.batch_size == 16


def test_of_two_overrides_of_one_key_the_last_wins(load):
    assert load("", ["train.seed=1", "train.seed=2"]).train.seed == 2


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optimizer.lr=1e-3", "optimizer.lr", 0.001),  # text to YAML 1.1
        ("optimizer.lr=1e5", "optimizer.lr", 100000.0),
        ("train.batch_size=64", "train.batch_size", 64),
        ("augment.flip=true", "augment.flip", True),
        ("data.classes=[5, 6]", "data.classes", [5, 6]),
        ("train.duration=0.5 epochs", "train.duration", "0.5 epochs"),
        ("run.dir=2024", "run.dir", "2024"),
        ("run.dir=1e3", "run.dir", "1e3"),
        ("run.dir=true", "run.dir", "true"),
        ("run.dir=a=b", "run.dir", "a=b"),
        ("run.dir=", "run.dir", ""),
        ("data.path=C: [", "data.path", "C: ["),
        ("data.source=tfds:mnist", "data.source", "tfds:mnist"),
    ],
)
def test_an_override_has_the_type_of_its_key(load, override, key, value):
    found = flat_recipe(load("", [override]))[key]
    assert (found, type(found)) == (value, type(value))


def test_overrides_from_python_may_be_objects(load):
    recipe = load("", {"train.duration": Duration(3, "steps"), "run.dir": Path("a") / "b"})
    assert (recipe.train.duration, recipe.run.dir) == (Duration(3, "steps"), "a/b")


def test_ordered_rules_of_the_rate_are_read(load):
    recipe = load("optimizer:\n  lr_scale:\n  - {match: ^head/, scale: 1}\n  - {match: ., scale: 0.1}\n")
    assert [(rule.match, rule.scale) for rule in recipe.optimizer.lr_scale] == [("^head/", 1.0), (".", 0.1)]


def test_the_run_folder_is_called_as_the_recipe_unless_it_says_otherwise(load):
    assert load("").run.dir == "runs/mine"
    assert load("run: {dir: here}").run.dir == "here"
    assert load_recipe("digits_cnn").run.dir == "runs/digits_cnn"


def test_named_recipes_are_found_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe("digits_cnn").data.source == "digits"
    assert find_recipe("digits_cnn") == named_recipes()["digits_cnn"]


def test_a_file_goes_before_a_named_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("digits_cnn").write_text("train: {seed: 7}")
    assert load_recipe("digits_cnn").train.seed == 7


@pytest.mark.parametrize("section", [name for name in Recipe.model_fields])
def test_a_recipe_cannot_be_changed(section):
    recipe = Recipe()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(recipe, section, None)
    part = getattr(recipe, section)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(part, next(iter(type(part).model_fields)), None)


def test_with_overrides_leaves_the_recipe_and_validates_the_new_one():
    recipe = Recipe()
    assert with_overrides(recipe, ["train.seed=3"]).train.seed == 3
    assert recipe.train.seed == 0
    with pytest.raises(UserError, match=r"^override train\.seed: train\.seed is -1"):
        with_overrides(recipe, ["train.seed=-1"])


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
POSITIVE = st.floats(1e-300, 1e300)
SCALE_RULE = st.fixed_dictionaries({"match": TEXTS.filter(bool).map(re.escape), "scale": POSITIVE})
VALID = {
    "run.dir": TEXTS,
    "data.path": TEXTS,
    "data.source": TEXTS.filter(bool),
    "data.image_size": st.integers(0, 8192),
    "data.channels": st.sampled_from([0, 1, 3]),
    "data.classes": st.lists(st.integers(0, 10**6), max_size=5),
    "data.validation": st.floats(0, 1, exclude_min=True, exclude_max=True),
    "data.split_seed": st.integers(0, 2**32 - 1),
    "data.max_undecodable": st.floats(0, 1),
    "augment.flip": st.booleans(),
    "model.init": TEXTS,
    "train.duration": st.integers(0, 10**12).map("{} steps".format)
    | st.floats(0, 1e12).map(lambda n: str(Duration(n, "epochs"))),
    "train.batch_size": st.integers(1, 2**24),
    "train.precision": st.sampled_from(["float32", "bfloat16"]),
    "train.ema_decay": st.floats(0, 1, exclude_max=True),
    "optimizer.lr": POSITIVE | st.integers(1, 1000),
    "optimizer.clip_norm": POSITIVE,
    "optimizer.lr_scale": st.lists(SCALE_RULE, max_size=3),
    "optimizer.eps": POSITIVE,
    "optimizer.b1": st.none() | st.floats(0, 1, exclude_max=True),
    "optimizer.end_lr": st.none() | st.floats(0, 1),
    "mesh.data": st.sampled_from([-1, 1, 8]),
}


@settings(max_examples=100, deadline=None, suppress_health_check=SHARED_FOLDER)
@example(overrides={"run.dir": "\x85", "data.path": "\u2028 \ufeff\r\n\t", "model.init": "Bilder/Äpfel \U0001f34e"})
@given(overrides=st.fixed_dictionaries({}, optional=VALID))
def test_a_dumped_recipe_loads_as_the_same_recipe(load, overrides):
    recipe = with_overrides(Recipe(), {"run.dir": "runs/mine", **overrides})
    assert load(dump_recipe(recipe)) == recipe


# What is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  batch_siz: 64\n", "mine.yaml:2: unknown key 'train.batch_siz'; the nearest is 'train.batch_size'"),
        ("lr: 1.0\n", "mine.yaml:1: unknown key 'lr'; the nearest is 'optimizer.lr'"),
        ("model: {}\ntrain: {lr: 1.0}\n", "mine.yaml:2: unknown key 'train.lr'; the nearest is 'optimizer.lr'"),
        (
            "train.batch_size: 64\n",
            "mine.yaml:1: unknown key 'train.batch_size'; in a file write batch_size inside the section train",
        ),
        (
            "optimizer:\n  lr: 1e-3\n",
            'mine.yaml:2: optimizer.lr is "1e-3" (text); a finite number > 0 is needed: write 1.0e-3',
        ),
        (
            "optimizer: {lr: 1e5}\n",
            'mine.yaml:1: optimizer.lr is "1e5" (text); a finite number > 0 is needed: write 1.0e+5',
        ),
        (
            "optimizer: {lr: '0.1'}\n",
            'mine.yaml:1: optimizer.lr is "0.1" (text); a finite number > 0 is needed: write 0.1 without quotes',
        ),
        (
            "train: {batch_size: '64'}\n",
            'mine.yaml:1: train.batch_size is "64" (text); a whole number >= 1 and <= 16777216 is needed: '
            "write 64 without quotes",
        ),
        (
            "train: {batch_size: '1.5'}\n",
            'mine.yaml:1: train.batch_size is "1.5" (text); a whole number >= 1 and <= 16777216 is needed',
        ),
        (
            "train: {batch_size: 64.0}\n",
            "mine.yaml:1: train.batch_size is 64.0 (number); a whole number >= 1 and <= 16777216 is needed",
        ),
        (
            "train: {batch_size: many}\n",
            'mine.yaml:1: train.batch_size is "many" (text); a whole number >= 1 and <= 16777216 is needed',
        ),
        (
            "train: {batch_size: -1}\n",
            "mine.yaml:1: train.batch_size is -1 (number); a whole number >= 1 and <= 16777216 is needed",
        ),
        ("optimizer: {lr: .nan}\n", "mine.yaml:1: optimizer.lr is nan (number); a finite number > 0 is needed"),
        ("optimizer: {lr: .inf}\n", "mine.yaml:1: optimizer.lr is inf (number); a finite number > 0 is needed"),
        ("optimizer: {lr: -0.1}\n", "mine.yaml:1: optimizer.lr is -0.1 (number); a finite number > 0 is needed"),
        ("optimizer: {lr: 0}\n", "mine.yaml:1: optimizer.lr is 0 (number); a finite number > 0 is needed"),
        ("optimizer: {lr: true}\n", "mine.yaml:1: optimizer.lr is true (true or false); a finite number > 0 is needed"),
        (
            "train: {seed: true}\n",
            "mine.yaml:1: train.seed is true (true or false); a whole number >= 0 and < 4294967296",
        ),
        ("optimizer: {lr:}\n", "mine.yaml:1: optimizer.lr is None (nothing); a finite number > 0 is needed"),
        ("augment: {flip: 1}\n", "mine.yaml:1: augment.flip is 1 (number); one of false, true, alternate is needed"),
        ("model: {name: [cnn28]}\n", "mine.yaml:1: model.name is ['cnn28'] (list); a text that is not empty is needed"),
        ("model: {name: ''}\n", 'mine.yaml:1: model.name is "" (text); a text that is not empty is needed'),
        ("run: {dir: 2024}\n", "mine.yaml:1: run.dir is 2024 (number); a text is needed"),
        ("data: {classes: 5}\n", "mine.yaml:1: data.classes is 5 (number); a list is needed"),
        ("train: {precision: fp16}\n", 'train.precision is "fp16" (text); one of float32, bfloat16 is needed'),
        (
            "train: {duration: 10}\n",
            "train.duration is 10 (number); a duration such as '10 epochs' or '600 steps' is needed",
        ),
        (
            "train: {duration: '10'}\n",
            "train.duration is \"10\" (text); a duration such as '10 epochs' or '600 steps' is needed",
        ),
        (
            "mesh: 8\n",
            "mine.yaml:1: mesh is 8 (number); a section with the keys data, fsdp, model, sharding, rules is needed",
        ),
        ("run:\n", "mine.yaml:1: run is None (nothing); a section with the keys dir is needed"),
        (
            "mesh: {data: 0}\n",
            "mine.yaml:1: mesh.data is 0 (number); a number of devices >= 1 is needed, or -1 for all",
        ),
        (
            "optimizer:\n  name: adam\n  weight_decay: 0.1\n",
            "mine.yaml:3: optimizer.weight_decay has no effect with adam; write optimizer.name=adamw",
        ),
        (
            "optimizer:\n  momentum: 0.5\n",
            "mine.yaml:2: optimizer.momentum has no effect with adam; its arguments: b1, b2, eps",
        ),
        (
            "train:\n  seed: 1\n  seed: 2\n",
            "mine.yaml:3: 'train.seed' is written twice, first at mine.yaml:2; keep one of them",
        ),
        ("model: {}\ndata: {}\nmodel: {}\n", "mine.yaml:3: 'model' is written twice, first at mine.yaml:1"),
        ("- train\n", "mine.yaml:1: a recipe is a mapping of sections such as train, not a list"),
        ("train\n", "mine.yaml:1: a recipe is a mapping of sections such as train, not a single value"),
        ("train: {\n", "mine.yaml:2: not valid YAML: "),
        ("train:\n\tseed: 1\n", "mine.yaml:2: not valid YAML: found character '\\t' that cannot start any token"),
        ("a: 1\n---\nb: 2\n", "mine.yaml:2: not valid YAML: but found another document"),
        ("train: {seed: \x07}\n", "mine.yaml: not valid YAML: unacceptable character #x0007"),
        (b"train: \xff\n", "mine.yaml: is not UTF-8 text (byte 7): this is no recipe"),
        (b"\x89PNG\r\n\x1a\n", "mine.yaml: is not UTF-8 text (byte 0): this is no recipe"),
        ("#" * ((1 << 20) + 1), "mine.yaml: larger than 1,048,576 bytes: this is no recipe"),
        ("{a: " * 5000, "mine.yaml: not valid YAML: maximum recursion depth exceeded"),
        ("[" * 5000 + "]" * 5000, "mine.yaml: not valid YAML: maximum recursion depth exceeded"),
        ("a: &a {b: *a}\n", "mine.yaml: more than 100,000 values: this is no recipe"),
        ("optimizer: {lr: !!bool x}\n", "mine.yaml: not valid YAML: "),
        ("optimizer: {lr: !!int ''}\n", "mine.yaml: not valid YAML: "),
        ("optimizer: {lr: !!timestamp x}\n", "mine.yaml: not valid YAML: "),
        ("train: {seed: 2024-99-99}\n", "mine.yaml: not valid YAML: month must be in 1..12"),
        ("train: {seed: {2024-01-01: 1}}\n", "mine.yaml:1: train.seed is {datetime.date(2024, 1, 1): 1} (section); "),
        (f"optimizer: {{lr: 1{'0' * 400}}}\n", "mine.yaml:1: optimizer.lr is 1000000000"),
        (f"train: {{seed: 0x{'f' * 5000}}}\n", "mine.yaml:1: train.seed is an enormous number (number); "),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_a_wrong_recipe_is_refused_in_one_line_that_says_where_and_what_is_allowed(complaint, text, message):
    assert message in complaint(text)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("model: {dropout: 1}", "model.dropout is 1 (number); a finite number >= 0 and < 1 is needed"),
        ("model: {drop_path: -0.1}", "model.drop_path is -0.1 (number); a finite number >= 0 and < 1 is needed"),
        ("model: {remat: inputs}", 'model.remat is "inputs" (text); a list is needed'),
        (
            "model: {remat: [none, all]}",
            "model.remat.1 is \"all\" (text); Input should be 'none', 'products' or 'inputs'",
        ),
        (
            "model: {read: diagonal}",
            'model.read is "diagonal" (text); one of rows, columns, pixels, patches, hilbert is needed',
        ),
        ("model: {read: rows, patch: 4}", "model.patch has no effect without model.read=patches"),
        (
            "imbalance: {class_weights_from: 5 epochs}",
            "imbalance.class_weights_from has no effect without imbalance.class_weights",
        ),
        (
            "{train: {loss: sigmoid}, imbalance: {focal: 2}}",
            "imbalance.focal is for train.loss=softmax; leave it out, or change the loss",
        ),
        ("model: {hidden: -1}", "model.hidden is -1 (number); a whole number >= 0 and <= 65536 is needed"),
        ("model: {layers: 2000}", "model.layers is 2000 (number); a whole number >= 0 and <= 1024 is needed"),
        ("model: {bidirectional: 1}", "model.bidirectional is 1 (number); true or false is needed"),
        ("model: {truncate: -3}", "model.truncate is -3 (number); a whole number >= 0 and <= 16777216 is needed"),
        ("batch_norm: {over: shard}", 'batch_norm.over is "shard" (text); one of global, groups, per_shard is needed'),
        (
            "batch_norm: {over: groups}",
            "batch_norm.group_size is 0 (number); groups need a size of 1 or more, such as 32",
        ),
        ("batch_norm: {group_size: 32}", "batch_norm.group_size has an effect with batch_norm.over=groups only"),
        (
            "batch_norm: {over: per_shard, group_size: 32}",
            "batch_norm.group_size has an effect with batch_norm.over=groups only",
        ),
        ("batch_norm: {momentum: 1}", "batch_norm.momentum is 1 (number); a finite number >= 0 and < 1 is needed"),
        ("train: {accumulate: 0}", "train.accumulate is 0 (number); a whole number >= 1 and <= 65536 is needed"),
        (
            "train: {accumulate: 3, batch_size: 32}",
            "train.accumulate is 3 and does not divide train.batch_size=32",
        ),
        ("train: {loss: hinge}", 'train.loss is "hinge" (text); one of softmax, sigmoid, asymmetric is needed'),
        (
            "train: {label_smoothing: 1}",
            "train.label_smoothing is 1 (number); a finite number >= 0 and < 1 is needed",
        ),
        ("train: {sam_rho: -1}", "train.sam_rho is -1 (number); a finite number >= 0 is needed"),
        ("train: {ema_decay: 1}", "train.ema_decay is 1 (number); a finite number >= 0 and < 1 is needed"),
        (
            "train: {steps_per_dispatch: -1}",
            "train.steps_per_dispatch is -1 (number); a whole number >= 0 and <= 65536 is needed",
        ),
        ("mesh: {fsdp: 0}", "mesh.fsdp is 0 (number); a whole number >= 1 is needed"),
        ("mesh: {model: -1}", "mesh.model is -1 (number); a whole number >= 1 is needed"),
        (
            "mesh: {sharding: zero3}",
            'mesh.sharding is "zero3" (text); one of auto, replicated, zero1, fsdp is needed',
        ),
        (
            "mesh: {sharding: fsdp, rules: [{match: '.*'}]}",
            "mesh.sharding fsdp has no effect beside mesh.rules; write auto or zero1",
        ),
        (
            "mesh: {sharding: zero1, fsdp: 2}",
            "mesh.fsdp has no effect with mesh.sharding=zero1; write auto or fsdp",
        ),
        (
            "mesh: {rules: [{match: '(', over: [fsdp]}]}",
            'mesh.rules.0.match is "(" (text); a regular expression is needed '
            "(missing ), unterminated subpattern at position 0)",
        ),
        (
            "mesh: {rules: [{match: '.*', over: [data]}]}",
            "mesh.rules.0.over.0 is \"data\" (text); Input should be 'fsdp' or 'model'",
        ),
        ("mesh: {rules: [{match: ''}]}", 'mesh.rules.0.match is "" (text); String should have at least 1 character'),
        ("mesh: {rules: [{over: [fsdp]}]}", "mesh.rules.0.match is missing; it has no default"),
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(complaint, section, message):
    assert complaint(section).startswith(f"mine.yaml:1: {message}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("b2: 0.9, name: sgd", "b2 has no effect with sgd; its arguments: momentum, nesterov"),
        (
            "nesterov: true, name: lars",
            "nesterov has no effect with lars; its arguments: momentum, trust_coefficient, eps",
        ),
        ("eps: 0.001, name: lion", "eps has no effect with lion; its arguments: b1, b2"),
        (
            "b1: 0.9, name: adafactor",
            "b1 has no effect with adafactor; its arguments: "
            "decay_exponent, clipping_threshold, parameter_scale, momentum",
        ),
        ("b1: 0.9, name: rmsprop", "b1 has no effect with rmsprop; its arguments: rms_decay, eps, momentum"),
        (
            "rms_decay: 0.9, name: muon",
            "rms_decay has no effect with muon; its arguments: momentum, nesterov, b1, b2, eps",
        ),
        ("trust_coefficient: 1, name: lamb", "trust_coefficient has no effect with lamb; its arguments: b1, b2, eps"),
        ("nesterov: true, name: sgd, momentum: 0", "nesterov has no effect with optimizer.momentum=0"),
        (
            "name: adamv",
            'name is "adamv" (text); one of sgd, adam, adamw, lamb, lars, lion, adafactor, rmsprop, muon is needed',
        ),
        ("name: sgd, momentum: 1", "momentum is 1 (number); a finite number >= 0 and < 1 is needed"),
        ("name: sgd, momentum: .nan", "momentum is nan (number); a finite number >= 0 and < 1 is needed"),
        ("name: sgd, nesterov: 1", "nesterov is 1 (number); true or false is needed"),
        ("b1: -0.1", "b1 is -0.1 (number); a finite number >= 0 and < 1 is needed"),
        ("b2: true", "b2 is true (true or false); a finite number >= 0 and < 1 is needed"),
        ("eps: 0", "eps is 0 (number); a finite number > 0 is needed"),
        ("eps: 1e-3", 'eps is "1e-3" (text); a finite number > 0 is needed: write 1.0e-3'),
        ("name: rmsprop, rms_decay: 2", "rms_decay is 2 (number); a finite number >= 0 and < 1 is needed"),
        ("name: lars, trust_coefficient: 0", "trust_coefficient is 0 (number); a finite number > 0 is needed"),
        (
            "name: adafactor, clipping_threshold: 0.5",
            "clipping_threshold is 0.5 (number); a finite number >= 1 is needed",
        ),
        ("name: adafactor, decay_exponent: 0", "decay_exponent is 0 (number); a finite number > 0 and <= 1 is needed"),
        ("name: adafactor, parameter_scale: 1", "parameter_scale is 1 (number); true or false is needed"),
        ("weight_decay: -1", "weight_decay is -1 (number); a finite number >= 0 is needed"),
        ("clip_norm: -1", "clip_norm is -1 (number); a finite number >= 0 is needed"),
        ("adaptive_clip: .inf", "adaptive_clip is inf (number); a finite number >= 0 is needed"),
        ("lr_per_256: 1", "lr_per_256 is 1 (number); true or false is needed"),
        (
            "schedule: cosin",
            'schedule is "cosin" (text); one of constant, linear, cosine, step, one_cycle, wsd is needed',
        ),
        ("schedule: constant, end_lr: 0.1", "end_lr has no effect with constant; its arguments: warmup_start"),
        (
            "schedule: step, step_every: 1 epochs, cooldown: 1 epochs",
            "cooldown has no effect with step; its arguments: warmup_start, step_every, step_factor",
        ),
        ("step_factor: 0.1", "step_factor has no effect with cosine; its arguments: warmup_start, end_lr"),
        ("schedule: step", "step_every is needed with step; write a length such as 10 epochs"),
        ("schedule: step, step_every: 0 epochs", "step_every is needed with step; write a length such as 10 epochs"),
        (
            "schedule: step, step_every: 3",
            "step_every is 3 (number); a duration such as '10 epochs' or '600 steps' is needed",
        ),
        (
            "schedule: step, step_every: 3 epochs, step_factor: 1",
            "step_factor is 1 (number); a finite number > 0 and < 1 is needed",
        ),
        ("schedule: wsd", "cooldown is needed with wsd; write a length such as 10 epochs"),
        (
            "schedule: wsd, cooldown: 1 epochs, cooldown_shape: sqrt",
            'cooldown_shape is "sqrt" (text); one of linear, 1-sqrt is needed',
        ),
        ("schedule: one_cycle", "warmup is the rise of one_cycle and cannot be 0; write its length"),
        ("warmup_start: 0.1", "warmup_start has no effect without optimizer.warmup"),
        ("warmup: 1 epochs, warmup_start: 2", "warmup_start is 2 (number); a finite number >= 0 and <= 1 is needed"),
        ("end_lr: -0.1", "end_lr is -0.1 (number); a finite number >= 0 and <= 1 is needed"),
        ("decay_scale: [{match: bias, scale: 0}]", "decay_scale has no effect without optimizer.weight_decay"),
        (
            "lr_scale: [{match: '(', scale: 0}]",
            'lr_scale.0.match is "(" (text); a regular expression is needed '
            "(missing ), unterminated subpattern at position 0)",
        ),
        (
            "lr_scale: [{match: '[[a]', scale: 0}]",
            'lr_scale.0.match is "[[a]" (text); a regular expression is needed (Possible nested set at position 1)',
        ),
    ],
)
def test_an_optimizer_that_cannot_be_meant_is_refused(complaint, settings, message):
    assert complaint(f"optimizer: {{{settings}}}") == f"mine.yaml:1: optimizer.{message}"


def test_an_argument_left_out_is_the_optimizers_own(load):
    section = load("optimizer: {name: muon, momentum: 0.9, b2: null}").optimizer
    assert section.arguments == {"momentum": 0.9, "nesterov": True, "b1": 0.9, "b2": 0.999, "eps": 1e-8}


@pytest.mark.parametrize(("key", "table"), [("name", OPTIMIZERS), ("schedule", SCHEDULES)])
def test_every_name_that_a_recipe_may_choose_has_its_arguments(key, table):
    assert get_args(OptimizerSection.model_fields[key].annotation) == tuple(table)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_its_defaults_when_they_are_written_out(load, name):
    written = load(dump_recipe(with_overrides(Recipe(), {"optimizer": {"name": name, **OPTIMIZERS[name]}})))
    assert written.optimizer.arguments == load(f"optimizer: {{name: {name}}}").optimizer.arguments


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!include", "!!python/none"]
)
def test_a_recipe_cannot_name_code(complaint, tag):
    message = complaint(f"model: {{}}\nrun:\n  dir: {tag} ['touch pwned']\n")
    assert message.startswith("mine.yaml:3: not valid YAML: could not determine a constructor for the tag ")
    assert not Path("pwned").exists()


def test_aliases_of_aliases_do_not_fill_the_memory(complaint):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert complaint("\n".join(lines)) == "mine.yaml: more than 100,000 values: this is no recipe"


def test_an_unknown_key_is_told_before_what_follows_from_it(complaint):
    assert "unknown key 'train.durration'" in complaint("train: {batch_size: 0, durration: 3}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.batch_size",
            "override 'train.batch_size' has no '='; write key=value, for example train.batch_size=64",
        ),
        ("=64", "override '=64' has no '='; write key=value, for example train.batch_size=64"),
        (
            "optimiser.lr=1",
            "override optimiser.lr: unknown key 'optimiser'; the nearest is 'optimizer.lr'",
        ),
        (
            "train.batchsize=1",
            "override train.batchsize: unknown key 'train.batchsize'; the nearest is 'train.batch_size'",
        ),
        (
            "run.dir.x=1",
            "override run.dir.x: dir is a value, not a section; unknown key 'run.dir.x'; the nearest is 'run.dir'",
        ),
        ("optimizer.lr=nan", "override optimizer.lr: optimizer.lr is nan (number); a finite number > 0 is needed"),
        ("optimizer.lr=-1e-3", "override optimizer.lr: optimizer.lr is -0.001 (number); a finite number > 0 is needed"),
        ("optimizer.lr=fast", 'override optimizer.lr: optimizer.lr is "fast" (text); a finite number > 0 is needed'),
        ("optimizer.lr=[", "override optimizer.lr: '[' cannot be read as a YAML value"),
        ("optimizer.lr=!!bool x", "override optimizer.lr: '!!bool x' cannot be read as a YAML value"),
        ("optimizer.lr=!!python/name:os.system", "cannot be read as a YAML value"),
        ("train=5", "override train: train is 5 (number); a section with the keys duration, batch_size, "),
        (
            "mesh.data=0",
            "override mesh.data: mesh.data is 0 (number); a number of devices >= 1 is needed, or -1 for all",
        ),
    ],
)
def test_a_wrong_override_is_refused_in_one_line_that_names_it(complaint, override, message):
    assert message in complaint("run: {dir: x}", [override])


def test_an_override_that_breaks_a_rule_of_two_keys_is_named(complaint):
    message = complaint("optimizer: {weight_decay: 0.1, name: adamw}", ["optimizer.name=adam"])
    assert message == "mine.yaml:1: optimizer.weight_decay has no effect with adam; write optimizer.name=adamw"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digits_cn", "recipe 'digits_cn' is neither a file nor a known name; the nearest is 'digits_cnn'"),
        (
            "configs/mnist_rn.yaml",
            "recipe 'configs/mnist_rn.yaml' is neither a file nor a known name; the nearest is 'mn",
        ),
        ("zzzzzz", "recipe 'zzzzzz' is neither a file nor a known name; known: "),
        ("", "recipe '' is neither a file nor a known name; known: "),
        ("a\0b", "recipe 'a\\x00b' is neither a file nor a known name"),
    ],
)
def test_an_unknown_recipe_is_refused_with_the_nearest_name(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as raised:
        load_recipe(name)
    assert message in str(raised.value)


def test_a_name_longer_than_any_file_is_an_unknown_recipe():
    with pytest.raises(UserError, match="recipe 'aaa"):
        load_recipe("a" * 5000)


@settings(max_examples=50, deadline=None, suppress_health_check=SHARED_FOLDER)
@given(number=st.floats(1e-300, 1e300) | st.integers(1, 10**9), form=st.sampled_from(["{}", "{:e}", "{:g}", "'{}'"]))
def test_following_the_suggestion_for_a_number_helps(load, number, form):
    text = form.format(number)
    try:
        assert math.isfinite(load(f"optimizer: {{lr: {text}}}").optimizer.lr)
    except UserError as error:
        suggestion = str(error).partition(": write ")[2].removesuffix(" without quotes")
        assert load(f"optimizer: {{lr: {suggestion}}}").optimizer.lr == float(text.strip("'"))


# Anything at all in a file

PLAIN = ["1", "-1", "0.5", "1e-3", ".nan", "true", "null", "~", "''", "10 epochs", "2024-01-01", "12:30:45", "0x1f"]
ODD = ["!!bool x", "!!binary x", "!!set {a}", "!!str 5", "&a 1", "*a", "? [1]", "<<", "\\ud800", '"\\ud800"', '"a\\nb"']
SCALARS = st.sampled_from(PLAIN + ODD)
KEYS = st.sampled_from([key for name in flat_recipe(Recipe()) for key in (name, *name.split("."))]) | SCALARS
YAML_TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.lists(st.tuples(KEYS, inner), max_size=3).map(lambda kv: "{" + ", ".join(f"{k}: {v}" for k, v in kv) + "}")
    ),
    max_leaves=8,
)


def mapping_lines(pairs: list[tuple[str, str]]) -> str:
    return "".join(f"{key}: {value}\n" for key, value in pairs)


@settings(max_examples=300, deadline=None, suppress_health_check=SHARED_FOLDER)
@given(text=st.text(max_size=80) | st.binary(max_size=80) | st.lists(st.tuples(KEYS, YAML_TREES)).map(mapping_lines))
def test_any_file_is_a_recipe_or_a_one_line_error(load, text):
    try:
        recipe = load(text)
    except UserError as error:
        message = str(error)
        assert message.startswith("mine.yaml")
        assert len(message.splitlines()) == 1
        message.encode()  # a terminal can show it
    else:
        assert yaml.safe_load(dump_recipe(recipe)) == recipe.model_dump(mode="json")


@settings(max_examples=200, deadline=None)
@given(overrides=st.lists(st.text(max_size=30) | st.tuples(KEYS, YAML_TREES).map("=".join), max_size=3))
def test_any_overrides_give_a_recipe_or_a_one_line_error(overrides):
    try:
        with_overrides(Recipe(), overrides)
    except UserError as error:
        assert len(str(error).splitlines()) == 1


# Sequences


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "data:\n  source: ts\n  image_size: 28",
            "mine.yaml:3: data.image_size has no effect with ts, whose records are sequences; leave it out",
        ),
        (
            "data: {source: audio, train_crop: center}",
            "mine.yaml:1: data.train_crop has no effect with audio, whose records are sequences; leave it out",
        ),
        (
            "data: {source: ts, progressive: [{until: 1 epochs, image_size: 9}]}",
            "mine.yaml:1: data.progressive has no effect with ts, whose records are sequences; leave it out",
        ),
        (
            "data: {buckets: 4}",
            "mine.yaml:1: data.buckets has no effect with digits, whose records are pictures; leave it out",
        ),
        (
            "data: {class_names: [zero, one]}",
            "mine.yaml:1: data.class_names has an effect with data.source=idx only, not with digits",
        ),
        (
            "data:\n  source: idx\n  class_names: [boot, bag, boot]",
            "mine.yaml:3: data.class_names names a class twice",
        ),
        (
            "data: {source: ts, test_match: _1}",
            "mine.yaml:1: data.test_match has an effect with data.source=audio only, not with ts",
        ),
        (
            "data: {source: sequences}\n\ndata.audio: 3",
            "mine.yaml:3: unknown key 'data.audio'; the nearest is 'data.audio.mels'",
        ),
        (
            "data:\n  audio:\n    mels: 80",
            "mine.yaml:3: data.audio.mels has an effect with data.source=audio only, not with digits",
        ),
        (
            "data: {source: audio}\naugment:\n  flip: true",
            "mine.yaml:3: augment.flip has no effect on sequences; leave it out",
        ),
        (
            "data: {source: ts}\naugment: {mixup: 0.2}",
            "mine.yaml:2: augment.mixup has no effect on sequences; leave it out",
        ),
        (
            "data: {source: ts}\nevaluate: {tta: mirror}",
            "mine.yaml:2: evaluate.tta has no effect on sequences; leave it out",
        ),
        (
            "data: {source: ts, buckets: 2, on_device: true}",
            "mine.yaml:1: data.on_device needs batches of one size; leave out data.buckets or this",
        ),
        (
            "data: {source: ts, buckets: 2}\ntrain: {steps_per_dispatch: 4}",
            "mine.yaml:2: train.steps_per_dispatch needs batches of one size; leave out data.buckets or this",
        ),
        (
            "data: {source: ts, buckets: 65}",
            "mine.yaml:1: data.buckets is 65 (number); a whole number >= 1 and <= 64 is needed",
        ),
        (
            "data: {source: audio, test_match: (}",
            'mine.yaml:1: data.test_match is "(" (text); a regular expression is needed (missing ), unterminated '
            "subpattern at position 0)",
        ),
    ],
)
def test_what_sequences_and_pictures_do_not_share_is_refused(complaint, text, message):
    assert complaint(text) == message


def test_a_recipe_of_sound_is_read_and_written_back(load):
    recipe = load("data: {source: audio, path: x, buckets: 4, test_match: _0, audio: {mels: 64, hop_ms: 8}}")
    assert (recipe.data.audio.mels, recipe.data.audio.hop_ms, recipe.data.audio.window_ms) == (64, 8.0, 25.0)
    Path("again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe("again.yaml") == recipe
    assert with_overrides(recipe, ["data.audio.mels=80"]).data.audio.mels == 80
