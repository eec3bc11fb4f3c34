"""The card of a bundle: README.md, written from the facts in model.json and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pcls.config import Recipe, flat_recipe
from pcls.observe.console import telling

# Of more, the first are listed.
MOST_NAMES = 100
# Of settings and names, which may be longer than anybody reads.
MOST_CHARACTERS = 200
# Settings that are told even where they are the default.
ALWAYS = ("data.source", "model.name", "train.duration", "optimizer.name")
# Those that are shares; of all others the plain number is told.
SHARES = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "balanced": "mean recall of classes",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "map": "mean average precision",
    "subset_accuracy": "records with every label right",
    "hamming": "wrong labels",
    "chosen_micro_f1": "micro F1 at the chosen thresholds",
    "chosen_macro_f1": "macro F1 at the chosen thresholds",
}


def card_text(facts: Mapping[str, Any], parameters: int, zeros: float = 0.0) -> str:
    """The card as Markdown.

    Names of classes, settings and origins come from outside. They stand in code spans and indented blocks, which no
    text in one line can leave: it is shown as it is, and is no link, no picture, no HTML and no row of a table.

    Args:
      facts: what model.json holds.
      parameters: numbers in the weights that training changes.
      zeros: share of the kernels' numbers that are 0.
    """
    sections = {
        "": _summary(facts, parameters, zeros),
        "Use": _use(facts),
        "Classes": _classes(facts),
        "Metrics": _metrics(facts),
        "Input": _input(facts["preprocessing"]),
        "Probabilities": _probabilities(facts),
        "Training": _training(facts),
        "Origin and licence": _origin(facts["origin"]),
        "Digests": [
            f"- model.safetensors: sha256 {_code(facts['weights_sha256'])}",
            f"- the facts in model.json: sha256 {_code(facts['facts_sha256'])}",
        ],
    }
    written = [([f"## {title}", ""] if title else []) + lines + [""] for title, lines in sections.items() if lines]
    return "\n".join(line for section in written for line in section)


def _summary(facts: Mapping[str, Any], parameters: int, zeros: float) -> list[str]:
    classes, sequences = len(facts["class_names"]), facts["preprocessing"]["sequence"]
    what = "sequences" if sequences else "images"
    several = ", each given or not" if facts.get("thresholds") else ""
    return [
        f"# {_code(facts['model'])}, a classifier of {what}",
        "",
        f"{parameters:,} parameters, {classes:,} classes{several}. Made by pcls; the numbers below are those in "
        "model.json.",
        *_sparsity(zeros),
        *_quantization(facts.get("quantization")),
        *_options(facts["options"]),
    ]


def _sparsity(zeros: float) -> Iterator[str]:
    # Of few, as in weights that were never changed, nobody wants to know.
    if zeros >= 0.01:
        yield from (
            "",
            f"{100 * zeros:.0f} % of the numbers in its kernels are 0. They are computed with as any others: "
            "predictions take as long as without them.",
        )


def _options(options: Mapping[str, Any]) -> Iterator[str]:
    if options:
        yield from ("", "The architecture, where it is not the model's customary one:", "", *_settings(options))


def _quantization(quantization: Mapping[str, Any] | None) -> Iterator[str]:
    if quantization:
        inputs = f", int8 inputs of {len(quantization['inputs'])} layers" if quantization["inputs"] else ""
        yield from ("", f"Quantized: int{quantization['bits']} weights{inputs}.")


def _use(facts: Mapping[str, Any]) -> list[str]:
    sequence = facts["preprocessing"]["sequence"]
    file = "a.jpg" if not sequence else "a.wav" if sequence["kind"] == "log_mel" else "a.npy"
    return [
        "    import pcls",
        "",
        '    classifier = pcls.load("FOLDER")  # this one',
        f'    print(classifier.predict("{file}"))',
        "",
        f"On the command line: `pcls predict FOLDER {file}`. Nothing in the folder is code, and the digests of weights "
        "and facts are checked when they are loaded.",
    ]


def _classes(facts: Mapping[str, Any]) -> list[str]:
    names = facts["class_names"]
    more = f" and {len(names) - MOST_NAMES:,} more, in model.json" if len(names) > MOST_NAMES else ""
    return ["In the order of the outputs: " + ", ".join(map(_code, names[:MOST_NAMES])) + more + "."]


def _metrics(facts: Mapping[str, Any]) -> list[str]:
    metrics, training = facts["metrics"], facts.get("training")
    if not metrics:
        return ["None were measured."]
    lines = [
        f"On {metrics['n']:,} held-out records" if "n" in metrics else "On held-out records",
        f"{_undecodable(metrics)}, when {_measured_after(facts)} ended{_uncalibrated(facts)}.",
    ]
    shown = telling(metrics, len(facts["class_names"]))
    rows = [(words, f"{shown[name]:.2%}") for name, words in SHARES.items() if name in shown]
    rows += [("loss", f"{metrics['loss']:.4f}")] if "loss" in metrics else []
    text = ["".join(lines), "", *_table(("metric", "value"), rows)]
    if training is None:
        return text
    if training["classes"]:
        names = map(_cell, facts["class_names"])
        rates = [(f"{n:,}", *(f"{rate:.2%}" for rate in shares)) for n, *shares in training["classes"]]
        header = ("class", "records", "precision", "recall", "F1")
        text += ["", *_table(header, [(name, *row) for name, row in zip(names, rates, strict=True)])]
    told = "the class and the file name, or number, of each record in order"
    return [*text, "", f"These {training['held_out']:,} records: {_code(training['digest'])}, over {told}."]


def _measured_after(facts: Mapping[str, Any]) -> str:
    training = facts.get("training") or {}
    return "its compression" if training.get("compressed") else "the training"


def _undecodable(metrics: Mapping[str, Any]) -> str:
    return f" ({metrics['undecodable']:,} more could not be decoded)" if metrics.get("undecodable") else ""


def _uncalibrated(facts: Mapping[str, Any]) -> str:
    return ", before the calibration" if facts.get("calibration") else ""


def _input(preprocessing: Mapping[str, Any]) -> list[str]:
    sequence, width, height = preprocessing["sequence"], preprocessing["width"], preprocessing["height"]
    if sequence is not None:
        kind = "numbers as they lie"
        if sequence["kind"] == "log_mel":
            kind = (
                f"log mel energies of sound at {sequence['sample_rate']:,} Hz, {sequence['window_ms']:g} ms every "
                f"{sequence['hop_ms']:g} ms"
            )
        return [f"Sequences of up to {height:,} steps in training, {width:,} features a step: {kind}."]
    channels = {1: "grey", 3: "RGB"}.get(preprocessing["channels"], f"{preprocessing['channels']} channels")
    mean, std = (", ".join(f"{value:g}" for value in preprocessing[key]) for key in ("mean", "std"))
    return [
        f"- {height} x {width} pixels, {channels}; any image is brought to that",
        f"- {_code(preprocessing['crop_mode'])} crop of {preprocessing['crop_pct']:g}, "
        f"{_code(preprocessing['interpolation'])}",
        f"- of x / 255: mean {mean}; deviation {std}",
    ]


def _probabilities(facts: Mapping[str, Any]) -> list[str]:
    if facts.get("thresholds"):
        lowest, highest = min(facts["thresholds"]), max(facts["thresholds"])
        return [
            "A record may have several labels or none. Each is given from its own threshold on, "
            f"{lowest:.2f} to {highest:.2f}."
        ]
    calibration = facts.get("calibration")
    if calibration is None:
        return ["The softmax of the logits, not calibrated."]
    kind = (
        f"temperature {1 / calibration['scale'][0]:.4g}"
        if calibration["method"] == "temperature"
        else "a scale and a bias for each class"
    )
    return [f"Calibrated by {kind}, fitted to {calibration['fitted']:,} held-out records."]


def _training(facts: Mapping[str, Any]) -> list[str]:
    training = facts.get("training")
    if training is None:
        return ["Not noted in this bundle."]
    usual = flat_recipe(Recipe())
    chosen = {key: value for key, value in training["recipe"].items() if key in ALWAYS or value != usual.get(key)}
    versions = ", ".join(f"{_code(name)} {_code(version)}" for name, version in training["versions"].items())
    compressed = training.get("compressed")
    afterwards = [f"Compressed afterwards: {_code(compressed)}.", ""] if compressed else []
    return [
        *afterwards,
        f"On {training['records']:,} records. The recipe, where it is not the default; all of it is in model.json:",
        "",
        *_settings(chosen),
        "",
        f"With {versions}.",
    ]


def _origin(origin: Mapping[str, str]) -> list[str]:
    if not origin:
        return ["No public weights are noted as its origin, and no licence is stated."]
    lines = [f"- {_plain(key)}: {_code(value)}" for key, value in origin.items()]
    return lines if "licence" in origin else [*lines, "- no licence is stated"]


def _settings(values: Mapping[str, Any]) -> Iterator[str]:
    """Lines of an indented block, which no line can leave."""
    for key, value in values.items():
        yield "    " + _line(f"{key}: {json.dumps(value, ensure_ascii=False)}")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"| {' | '.join(['---'] + ['---:'] * (len(header) - 1))} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _cell(text: str) -> str:
    """A code span in a table, where a bar ends a cell: a backslash before it would not always keep it from that."""
    return _code(text.replace("|", "\\x7c"))


def _code(text: object) -> str:
    """A code span: between more backticks than the text has in a row."""
    line = _line(str(text)) or " "
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    # One blank on each side is not shown.
    pad = " " if line[0] in "` " or line[-1] in "` " else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _line(text: str) -> str:
    """In one line of bearable length; what cannot be printed, a line break too, is written as escape."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return line if len(line) <= MOST_CHARACTERS else line[:MOST_CHARACTERS] + "..."


def _plain(text: str) -> str:
    """Letters and digits only, for words that are pcls's own in every bundle that it wrote."""
    return re.sub(r"[^A-Za-z0-9_]", "", text)
