"""The rows of predictions where records carry several labels."""

import csv
import io
import json

from pcls.deliver.classifier import Prediction
from pcls.deliver.predictions import Layout, flat_row, json_line, table_line, writer_of

LAYOUT = Layout(class_names=("cat", "=dog", "o\nwl"), several=True, top=2, width=6)
SEVERAL = Prediction("a.jpg", "cat", 0.9, (0.9, 0.7, 0.2), "", ("cat", "=dog"))
NONE = Prediction("b.jpg", "o\nwl", 0.3, (0.1, 0.2, 0.3), "", ())
BAD = Prediction("c.jpg", "", 0.0, (), "the file is empty")


def test_given_labels_come_first_and_the_most_probable_after_them():
    assert table_line(SEVERAL, LAYOUT) == "a.jpg   cat 90.0%, =dog 70.0%; most probable: cat 90.0%, =dog 70.0%"
    assert table_line(NONE, LAYOUT) == r"b.jpg   no label; most probable: o\nwl 30.0%, =dog 20.0%"
    assert table_line(BAD, LAYOUT) == "c.jpg   cannot be read: the file is empty"


def test_json_has_the_labels_with_their_probabilities():
    row = json.loads(json_line(SEVERAL, LAYOUT))
    assert row["labels"] == {"cat": 0.9, "=dog": 0.7}
    assert row["top"] == [{"label": "cat", "probability": 0.9}, {"label": "=dog", "probability": 0.7}]
    assert json.loads(json_line(NONE, LAYOUT))["labels"] == {}
    assert json.loads(json_line(BAD, LAYOUT))["labels"] is None


def test_a_cell_holds_all_labels_as_a_manifest_does(capsys):
    with writer_of("csv", LAYOUT, None) as write:
        for answer in (SEVERAL, NONE, BAD):
            write(answer)
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header == ["path", "labels", "label", "probability", "label_2", "probability_2", "error"]
    assert rows == [
        ["a.jpg", "cat;=dog", "cat", "0.9", "'=dog", "0.7", ""],
        ["b.jpg", "", "o\nwl", "0.3", "'=dog", "0.2", ""],
        ["c.jpg", "", "", "", "", "", "the file is empty"],
    ]
    # None given is not the same as not known.
    assert (flat_row(NONE, LAYOUT)["labels"], flat_row(BAD, LAYOUT)["labels"]) == ("", None)
