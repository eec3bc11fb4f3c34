"""The card of a bundle tells what model.json holds, and no name in it can become anything but text."""

import json

import numpy as np
import pytest
from markdown_it import MarkdownIt

from pcls.data.preprocessing import Preprocessing, SequenceFeatures
from pcls.models.registry import define_model
from pcls.pretrained.bundle import CARD, FACTS, Bundle, Calibration, save_bundle
from pcls.pretrained.card import card_text
from pcls.pretrained.history import ClassRates, Training

# Each would be a link, a picture, HTML, a heading, a row or the end of a code span, were it written as it is.
HOSTILE = (
    "a\n\n# heading\n\n<script>alert(1)</script>",
    "```\n[link](https://example.com)",
    "`` ` `![picture](https://example.com/a.png)",
    "a\\\\|b | <img src=x> |\\",
    "    - item\r\n> quote",
    "\u202eneht\x1b[31m\x00",
    "`",
    "``x",
    "x`\\",
    " ",
    "https://example.com @somebody www.example.com",
)


def card_of(folder, **changes):
    """Saves a bundle and reads its card."""
    size = changes.pop("size", Preprocessing(10, 10, 1, (0.1,), (0.5,), 0.875))
    names = changes.pop("class_names", ("cat", "dog", "owl"))
    options = {"classes": len(names)}
    definition = define_model("rnn28", height=size.height, width=size.width, channels=1, **options)
    params = {path: np.zeros(leaf.shape, np.float32) for path, leaf in definition.params.items()}
    save_bundle(Bundle("rnn28", names, size, "float32", params, {}, changes.pop("metrics", {}), **changes), folder)
    return (folder / CARD).read_text(encoding="utf-8")


def training(names, recipe=None):
    rates = tuple(ClassRates(number, 1.0, 0.5, 2 / 3) for number in range(len(names)))
    return Training(recipe or {"train.batch_size": 32}, {"pcls": "0.1.0"}, 90, 12, "sha256:c0ffee", rates)


def test_the_card_tells_the_facts(tmp_path):
    names = ("cat", "dog", "owl")
    recipe = {"data.source": "digits", "train.batch_size": 32, "optimizer.lr": 0.001, "augment.flip": True}
    card = card_of(
        tmp_path / "bundle",
        metrics={"n": 12, "undecodable": 1, "top1": 0.75, "loss": 0.5},
        training=training(names, recipe),
        calibration=Calibration("temperature", (0.5,), (0.0,), 40),
        origin={"name": "rnn28.mine", "licence": "mit"},
    )
    facts = json.loads((tmp_path / "bundle" / FACTS).read_text())
    assert card.startswith("# `rnn28`, a classifier of images\n\n1,475 parameters, 3 classes.")
    for line in (
        "In the order of the outputs: `cat`, `dog`, `owl`.",
        "On 12 held-out records (1 more could not be decoded), when the training ended, before the calibration.",
        "| top-1 accuracy | 75.00% |",
        "| loss | 0.5000 |",
        "| `dog` | 1 | 100.00% | 50.00% | 66.67% |",
        "- 10 x 10 pixels, grey; any image is brought to that",
        "Calibrated by temperature 2, fitted to 40 held-out records.",
        '    data.source: "digits"',
        "    train.batch_size: 32",
        "    augment.flip: true",
        "- licence: `mit`",
        f"- model.safetensors: sha256 `{facts['weights_sha256']}`",
        f"- the facts in model.json: sha256 `{facts['facts_sha256']}`",
    ):
        assert line in card.splitlines()
    assert "`sha256:c0ffee`" in card
    # The default, which nobody asked for.
    assert "optimizer.lr" not in card


def test_what_is_not_known_is_said_to_be_so(tmp_path):
    card = card_of(tmp_path / "bundle")
    for line in (
        "None were measured.",
        "Not noted in this bundle.",
        "The softmax of the logits, not calibrated.",
        "No public weights are noted as its origin, and no licence is stated.",
    ):
        assert line in card.splitlines()
    assert "- no licence is stated" in card_of(tmp_path / "named", origin={"name": "x"}).splitlines()


def test_sequences_and_several_labels_are_told(tmp_path):
    sound = Preprocessing(10, 10, 1, (0.0,) * 10, (1.0,) * 10, sequence=SequenceFeatures("log_mel", 8000, 10, 25, 10))
    card = card_of(tmp_path / "bundle", size=sound, thresholds=(0.25, 0.5, 0.75))
    assert "# `rnn28`, a classifier of sequences" in card
    assert '    print(classifier.predict("a.wav"))' in card
    assert "10 features a step: log mel energies of sound at 8,000 Hz, 25 ms every 10 ms." in card
    assert "from its own threshold on, 0.25 to 0.75." in card


def test_a_quantized_model_is_called_so(tmp_path):
    card_of(tmp_path / "bundle")
    facts = json.loads((tmp_path / "bundle" / FACTS).read_text())
    for inputs, line in (({}, "int4 weights."), ({"head": 1.0}, "int4 weights, int8 inputs of 1 layers.")):
        assert (
            f"Quantized: {line}" in card_text(facts | {"quantization": {"bits": 4, "inputs": inputs}}, 9).splitlines()
        )


def test_of_many_classes_the_first_are_listed(tmp_path):
    card = card_of(tmp_path / "bundle", class_names=tuple(f"class {number}" for number in range(250)))
    assert "`class 99` and 150 more, in model.json." in card
    assert "`class 100`" not in card


@pytest.mark.parametrize("place", range(len(HOSTILE)))
def test_no_name_becomes_markdown(tmp_path, place):
    """Each name alone, so that none can hide behind another."""
    name = HOSTILE[place]
    names = (name, "dog", "owl")
    card = card_of(
        tmp_path / "bundle",
        class_names=names,
        metrics={"n": 7, "top1": 1.0, "loss": 0.0},
        training=training(names, {"data.class_names": list(names), name: name}),
        origin={"name": name, name: name, "licence": name},
    )
    plain = card_of(
        tmp_path / "plain",
        class_names=("cat", "dog", "owl"),
        metrics={"n": 7, "top1": 1.0, "loss": 0.0},
        training=training(names, {"data.class_names": ["cat", "dog", "owl"], "cat": "cat"}),
        origin={"name": "cat", "cat": "cat", "licence": "cat"},
    )
    assert kinds(card) == kinds(plain)
    assert all(line.isprintable() for line in card.splitlines())
    assert len(card.splitlines()) == len(plain.splitlines())


def kinds(card: str) -> list[str]:
    """What the card is made of, token by token."""
    found = []
    for token in MarkdownIt("commonmark").enable("table").parse(card):
        found += [token.type, *(child.type for child in token.children or ())]
    return found


def test_a_name_is_shown_as_it_is(tmp_path):
    card = card_of(tmp_path / "bundle", class_names=("``x", "<b>", "a|b"), training=training("abc"), metrics={"n": 1})
    (spans,) = (
        [child.content for child in token.children if child.type == "code_inline"]
        for token in MarkdownIt("commonmark").parse(card)
        if token.content.startswith("In the order")
    )
    assert spans == ["``x", "<b>", "a|b"]
    # A bar would end the cell.
    assert "| `a\\x7cb` | 2 |" in card
