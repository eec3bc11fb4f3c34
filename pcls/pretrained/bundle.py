"""The bundle: all that a classifier needs to predict, in one folder that may be sent to anybody.

It holds model.safetensors and model.json, and README.md, a card for people. Nothing in it can run code, and nothing in
it is a secret or a place on the machine that made it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pcls.atomic import atomic_path
from pcls.config.model import ModelSection
from pcls.data.preprocessing import Preprocessing
from pcls.errors import UserError
from pcls.models.registry import define_model
from pcls.nn.module import ModelDef
from pcls.nn.quantized import Integers, Quantization, integers_of, is_kernel
from pcls.pretrained import quantized
from pcls.pretrained.card import card_text
from pcls.pretrained.history import Training

# Raised when a version that does not know what is new would predict otherwise. New facts that it can do without are
# none of its business: it leaves them out.
FORMAT = 1
WEIGHTS, FACTS, CARD = "model.safetensors", "model.json", "README.md"
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Calibration:
    """What makes probabilities of a trained model's logits: `softmax(scale * logits + bias)`.

    Attributes:
      method: `temperature` (one scale, no bias) or `vector` (both for each class).
      scale, bias: one number, or one a class.
      fitted: records that it was fitted to.
    """

    method: str
    scale: tuple[float, ...]
    bias: tuple[float, ...]
    fitted: int

    def __call__(self, logits: Array) -> Array:
        """[..., classes] calibrated logits, float32."""
        return logits * np.array(self.scale, np.float32) + np.array(self.bias, np.float32)

    def __str__(self) -> str:
        if self.method == "temperature":
            return f"temperature {1 / self.scale[0]:.4g}, fitted to {self.fitted:,} held-out records"
        return f"scale and bias of each class, fitted to {self.fitted:,} held-out records"


@dataclass(frozen=True)
class Bundle:
    """A trained classifier at rest.

    Attributes:
      model: a name of the registry.
      class_names: in the order of the outputs.
      preprocessing: what the weights expect of an image.
      precision: type of activations it was trained with.
      params, stats: path to array.
      metrics: of its last evaluation.
      path: where it was loaded from.
      options: of `define_model`, where the architecture is not the model's customary one.
      origin: where public weights came from: `name`, `source`, `revision` and `licence`, those that are known; empty:
        trained here from scratch.
      calibration: of the probabilities; None: they are the softmax of the logits.
      thresholds: of each class, from which probability on it is given, the sigmoid of its logit, where records carry
        several labels; empty: a record has one, the most probable.
      training: how the weights came about; None: not noted, as in public weights.
      quantization: of the parameters, which are then what its small integers stand for; None: they are as trained.
    """

    model: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    precision: str
    params: Mapping[str, np.ndarray]
    stats: Mapping[str, np.ndarray]
    metrics: Mapping[str, float]
    path: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)
    calibration: Calibration | None = None
    thresholds: tuple[float, ...] = ()
    training: Training | None = None
    quantization: Quantization | None = None

    def definition(self, classes: int | None = None, channels: int | None = None) -> ModelDef:
        """The model without its arrays, with as many classes and channels as its own or as given."""
        return define_model(
            self.model,
            height=self.preprocessing.height,
            width=self.preprocessing.width,
            channels=self.preprocessing.channels if channels is None else channels,
            classes=len(self.class_names) if classes is None else classes,
            precision=self.precision,
            **self.options,
        )

    def runnable(self) -> tuple[ModelDef, dict[str, Any]]:
        """The model and its parameters as it predicts: in integers where inputs of its layers are quantized.

        Raises:
          UserError: that needs a package which is not installed.
        """
        if self.quantization is None or not self.quantization.inputs:
            return self.definition(), dict(self.params)
        definition = replace(self.definition(), predicting=Integers(self.quantization))
        return definition, integers_of(self.params, self.quantization)


def save_bundle(bundle: Bundle, folder: Path) -> None:
    """Writes a bundle, whole or not at all; it takes the place of what is there.

    Raises:
      UserError: it cannot be written.
    """
    try:
        with atomic_path(folder) as part:
            _write_files(bundle, part)
            if folder.exists():
                shutil.rmtree(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: the bundle could not be written ({error})") from error


def _write_files(bundle: Bundle, folder: Path) -> None:
    tensors = {f"params/{path}": array for path, array in bundle.params.items()}
    tensors |= {f"stats/{path}": array for path, array in bundle.stats.items()}
    if bundle.quantization is not None:
        tensors |= quantized.to_tensors(bundle.quantization)
    folder.mkdir()
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / WEIGHTS)
    facts = _facts(bundle, _sha256(folder / WEIGHTS))
    (folder / FACTS).write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    # Integers make zeros of what is merely small.
    zeros = _zeros(bundle.params) if bundle.quantization is None else 0.0
    card = card_text(facts, sum(array.size for array in bundle.params.values()), zeros)
    (folder / CARD).write_text(card, encoding="utf-8")
    # safetensors lets nobody else read it.
    shutil.copymode(folder / FACTS, folder / WEIGHTS)


def _facts(bundle: Bundle, weights_sha256: str) -> dict[str, Any]:
    """What model.json says."""
    facts: dict[str, Any] = {
        "format": FORMAT,
        "model": bundle.model,
        "options": dict(bundle.options),
        "class_names": list(bundle.class_names),
        "preprocessing": bundle.preprocessing.to_json(),
        "precision": bundle.precision,
        "metrics": dict(bundle.metrics),
        "origin": dict(bundle.origin),
        "weights_sha256": weights_sha256,
    }
    if bundle.calibration is not None:
        facts["calibration"] = vars(bundle.calibration)
    if bundle.thresholds:
        facts["thresholds"] = list(bundle.thresholds)
    if bundle.training is not None:
        facts["training"] = bundle.training.to_json()
    if bundle.quantization is not None:
        facts["quantization"] = quantized.to_json(bundle.quantization)
    facts["facts_sha256"] = _facts_sha256(facts)
    return facts


def _zeros(params: Mapping[str, np.ndarray]) -> float:
    """The share of the kernels' numbers that are 0."""
    kernels = [array for path, array in params.items() if is_kernel(path, array.shape)]
    count = sum(array.size for array in kernels)
    return sum(array.size - np.count_nonzero(array) for array in kernels) / max(count, 1)


def load_bundle(folder: Path) -> Bundle:
    """Reads and checks a bundle.

    Raises:
      UserError: not a bundle, made by a newer format, weights that differ from their digest or from the model.
    """
    if not (folder / FACTS).is_file():
        raise UserError(f"{folder}: is no bundle: it has no {FACTS}")
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise UserError(
                f"{folder}: bundle format {facts['format']!r}, and this version of pcls reads format {FORMAT}; install "
                "the version that wrote it, or a newer one: pip install -U pcls"
            )
        if facts["facts_sha256"] != _facts_sha256(facts):
            # A changed mean or class name would load and predict wrongly without a word.
            raise UserError(f"{folder / FACTS}: differs from its own digest; copy the bundle again")
        bundle = Bundle(
            model=str(facts["model"]),
            class_names=_class_names(facts["class_names"]),
            preprocessing=Preprocessing.from_json(facts["preprocessing"]),
            precision=_precision(facts["precision"]),
            params={},
            stats={},
            metrics={str(key): _number(value) for key, value in facts["metrics"].items()},
            path=folder,
            # Validated as a recipe's: a key of a newer version is told as damage here, not as a bug later.
            options=ModelSection.model_validate({"name": facts["model"], **facts.get("options", {})}).architecture,
            # Bundles that were saved before there were public weights lack the key.
            origin={str(key): str(value) for key, value in facts.get("origin", {}).items()},
            # Only those that were calibrated have it.
            calibration=_calibration(facts["calibration"], len(facts["class_names"]))
            if "calibration" in facts
            else None,
            # Only those of several labels a record have them.
            thresholds=_thresholds(facts.get("thresholds", ()), len(facts["class_names"])),
            # Only those that a run of this version delivered.
            training=Training.from_json(facts["training"], len(facts["class_names"])) if "training" in facts else None,
        )
        if "quantization" in facts:
            bundle = replace(bundle, quantization=quantized.from_json(facts["quantization"]))
        digest = facts["weights_sha256"]
    # int(inf) is an OverflowError.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{folder / FACTS}: is damaged ({error!r})") from error
    if not (folder / WEIGHTS).is_file() or _sha256(folder / WEIGHTS) != digest:
        raise UserError(f"{folder / WEIGHTS}: is missing or differs from the digest in {FACTS}; copy the bundle again")
    return _with_arrays(bundle, folder / WEIGHTS)


def _class_names(names: Sequence[Any]) -> tuple[str, ...]:
    if not names or isinstance(names, str):
        raise ValueError("no class names")
    return tuple(map(str, names))


def _precision(name: Any) -> str:
    if name not in PRECISIONS:
        raise ValueError(f"precision {name!r}; one of {', '.join(PRECISIONS)} is needed")
    return str(name)


def _number(value: Any) -> float:
    """ValueError for what is none: a card could not be written of it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return value


def _calibration(values: Mapping[str, Any], classes: int) -> Calibration:
    """ValueError for what would be broadcast to some other number of classes, or make probabilities of nothing."""
    found = Calibration(
        str(values["method"]),
        tuple(map(float, values["scale"])),
        tuple(map(float, values["bias"])),
        int(values["fitted"]),
    )
    size = {"temperature": 1, "vector": classes}.get(found.method)
    if size is None or len(found.scale) != size or len(found.bias) != size:
        raise ValueError(f"calibration {found.method!r} of {len(found.scale)} scales for {classes} classes")
    if not np.isfinite(np.array([*found.scale, *found.bias])).all() or (size == 1 and found.scale[0] <= 0):
        raise ValueError("a calibration that is not finite, or a temperature that is not above 0")
    return found


def _thresholds(values: Sequence[Any], classes: int) -> tuple[float, ...]:
    """ValueError for such as would give all labels or none."""
    found = tuple(map(float, values))
    if len(found) not in (0, classes) or not all(0 <= value <= 1 for value in found):
        raise ValueError(f"{len(found)} thresholds for {classes} classes, or one that is not 0 to 1")
    return found


def _with_arrays(bundle: Bundle, path: Path) -> Bundle:
    definition = bundle.definition()
    try:
        tensors = load_file(path)
    # ValueError: of an array without elements, the header may claim any other size.
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: is no safetensors file ({error})") from error
    expected = {f"params/{name}": leaf for name, leaf in definition.params.items()}
    expected |= {f"stats/{name}": leaf for name, leaf in definition.stats.items()}
    if bundle.quantization is not None:
        expected |= quantized.expected_tensors(definition, bundle.quantization.bits)
    for name in sorted(expected.keys() | tensors.keys()):
        want, have = expected.get(name), tensors.get(name)
        if want is None or have is None or want.shape != have.shape or want.dtype != have.dtype:
            raise UserError(f"{path}: {name} is {_shape(have)}, and {bundle.model} needs {_shape(want)}")
    if bundle.quantization is not None:
        try:
            whole = quantized.from_tensors(bundle.quantization, definition, tensors)
        except ValueError as error:
            raise UserError(f"{path}: {error}; copy the bundle again, or compress the run anew") from error
        bundle = replace(bundle, quantization=whole)
        tensors |= {f"params/{name}": array.floats() for name, array in whole.weights.items()}
    return replace(
        bundle,
        params={name: tensors[f"params/{name}"] for name in definition.params},
        stats={name: tensors[f"stats/{name}"] for name in definition.stats},
    )


def _shape(array: Any) -> str:
    return "absent" if array is None else f"{array.dtype}{list(array.shape)}"


def _facts_sha256(facts: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in facts.items() if name != "facts_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
