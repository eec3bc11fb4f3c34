"""The list of keys is the schema's own."""

from pcls.config import Recipe, flat_recipe
from pcls.config.reference import attribute_texts, recipe_keys


def test_every_key_is_listed_once_with_a_meaning_and_what_is_allowed():
    keys = list(recipe_keys())
    assert [key.name for key in keys] == list(flat_recipe(Recipe()))
    assert all(len(key.meaning) > 5 and key.allowed for key in keys)


def test_a_key_says_its_default_and_its_bounds():
    (key,) = [key for key in recipe_keys() if key.name == "train.batch_size"]
    assert (key.default, key.allowed) == ("128", "a whole number >= 1 and <= 16777216")
    assert key.meaning == "images in a global batch, over all devices."


def test_texts_over_several_lines_and_shared_ones_are_read_whole():
    text = "A thing.\n\nAttributes:\n  a: one\n    and more.\n  b, c: both: of them.\n"
    assert attribute_texts(text) == {"a": "one and more.", "b": "both: of them.", "c": "both: of them."}
