"""Columns of words begin below each other, those of numbers end there."""

from pcls.observe.table import aligned

ROWS = [("name", "n", "note"), ("a longer name", "1,234", ""), ("b", "5", "kept")]


def test_words_are_to_the_left_and_numbers_to_the_right():
    assert aligned(ROWS, left=(0, 2)) == [
        "name               n  note",
        "a longer name  1,234",
        "b                  5  kept",
    ]


def test_the_first_column_is_of_words_if_nobody_says_otherwise_or_all_are():
    assert aligned(ROWS)[2] == "b                  5  kept"
    assert aligned(ROWS, left=None)[2] == "b              5      kept"
    assert aligned([("only", "a", "header")]) == ["only  a  header"]
