"""A classifier as a file that other programs run, held against what pcls computes before anybody sees it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pcls.atomic import atomic_path
from pcls.data.augment import normalise
from pcls.data.preprocessing import Preprocessing
from pcls.deliver.export_parity import BATCH_SIZE, OF_FLOATS, OF_ROUNDED, Batch, Parity, Sample, compare
from pcls.deliver.export_quantized import Marked, Stored, Told, with_gains
from pcls.errors import UserError, first_line
from pcls.models.folding import fold_batch_norm
from pcls.nn.module import Arrays
from pcls.nn.platform import compiling_for
from pcls.nn.quantized import Arithmetic, Quantization
from pcls.pretrained.bundle import Bundle
from pcls.pretrained.exporting import export_timm

FORMATS = ("stablehlo", "onnx", "litert", "safetensors")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
SUFFIXES = {"stablehlo": ".stablehlo", "onnx": ".onnx", "litert": ".tflite", "safetensors": ".safetensors"}
ARITHMETIC: Mapping[str, Callable[[Quantization], Arithmetic]] = {"stablehlo": Stored, "onnx": Marked, "litert": Told}
# Programs that hold no more than themselves: a JSON file beside them tells the rest.
BESIDE = ("stablehlo", "litert")
# Of that file.
FACTS_FORMAT = 1


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
      path: of the file.
      beside: of a second one that tells how to use it; None: there is none.
      size: bytes of the file.
      inputs: what the program takes, in words.
      parity: with the model; None: weights alone, which nothing runs.
      notices: what is not as in the bundle.
    """

    path: Path
    beside: Path | None
    size: int
    inputs: str
    parity: Parity | None
    notices: tuple[str, ...]

    def summary(self) -> str:
        """Some lines for people."""
        lines = [f"{self.path}: {self.size / 1e6:,.1f} MB; {self.inputs}"]
        lines += [f"{self.beside}: class names, preprocessing and inputs"] if self.beside else []
        lines += [f"beside pcls, {self.parity}"] if self.parity else []
        return "\n".join([*lines, *self.notices])


def export_bundle(
    bundle: Bundle,
    form: str,
    out: Path,
    sample: Callable[[], Sample],
    *,
    with_preprocessing: bool = False,
    platforms: Sequence[str] = (),
    reference: Bundle | None = None,
) -> Exported:
    """Writes a classifier as a program or as weights, and nothing where the program says other than the model.

    Args:
      bundle: what is exported.
      form: one of `FORMATS`.
      out: a file that is not there yet.
      sample: gives the inputs that it is tried on.
      with_preprocessing: the program takes uint8 images at the model's size, and sequences as they lie, and normalises.
      platforms: of StableHLO, some of `PLATFORMS`; empty: cpu, cuda and tpu.
      reference: that it is held against; None: the bundle.

    Raises:
      UserError: an option without effect, a file that is there, a package that is not, what cannot be translated or
        written, or a program that says other than the model.
    """
    check_request(form, out, with_preprocessing=with_preprocessing, platforms=platforms)
    if form == "safetensors":
        export_timm(bundle, out)
        return Exported(out, None, out.stat().st_size, "weights by timm's names", None, _notices(bundle, form))
    write = {"onnx": _write_onnx, "litert": _write_litert, "stablehlo": _write_stablehlo}[form]
    program = _Program(bundle, form, with_preprocessing)
    beside = out.with_name(f"{out.name}.json") if form in BESIDE else None
    with _in_place(out, beside) as (part, part_beside):
        run = write(program, part, platforms or ("cpu", "cuda", "tpu"))
        if part_beside is not None:
            text = json.dumps(program.facts(), indent=2, ensure_ascii=False)
            part_beside.write_text(text + "\n", encoding="utf-8")
        limits = OF_ROUNDED if bundle.quantization is not None and bundle.quantization.inputs else OF_FLOATS
        parity = compare(sample(), reference_logits(reference or bundle), run, limits)
        if not parity.holds:
            way = "" if limits == OF_FLOATS else ", or compress its weights alone: pcls compress RUN --weights-only"
            raise UserError(
                f"{out}: not written: the exported program is not the model: {parity}; please report it, with the "
                f"model{way}"
            )
    return Exported(out, beside, out.stat().st_size, program.inputs_text(), parity, _notices(bundle, form))


def check_request(form: str, out: Path, *, with_preprocessing: bool, platforms: Sequence[str]) -> None:
    """What can be told before a model is opened: UserError."""
    if form not in FORMATS:
        raise UserError(f"--to {form}: there is no such format; choose {', '.join(FORMATS)}")
    if platforms and form != "stablehlo":
        raise UserError(f"--platforms has no effect with --to {form}; leave it out")
    for platform in platforms:
        if platform not in PLATFORMS:
            raise UserError(f"--platforms {platform}: there is no such platform; choose of {', '.join(PLATFORMS)}")
    if with_preprocessing and form == "safetensors":
        raise UserError("--with-preprocessing has no effect with --to safetensors, which holds weights; leave it out")
    if form == "safetensors" and out.suffix != ".safetensors":
        raise UserError(f"--out {out}: weights alone go into a file that ends with .safetensors")
    if out.suffix in SUFFIXES.values() and out.suffix != SUFFIXES[form]:
        raise UserError(f"--out {out}: says another format than --to {form}; end it with {SUFFIXES[form]}")
    for path in (out, out.with_name(f"{out.name}.json")) if form in BESIDE else (out,):
        if path.exists():
            raise UserError(f"{path}: is there already; remove it, or name another by --out")


def _notices(bundle: Bundle, form: str) -> tuple[str, ...]:
    notices = []
    if bundle.quantization is not None and form == "safetensors":
        notices.append("the model is quantized; exported are the float32 numbers that its small integers stand for")
    elif bundle.quantization is not None:
        # ONNX has int4 since opset 21, which needs a newer onnxruntime.
        wider = "; each int4 weight takes a byte" if bundle.quantization.bits == 4 else ""
        notices.append(f"the model is quantized, and so is the program: {bundle.quantization}{wider}")
    if bundle.precision != "float32":
        notices.append(f"the model was trained in {bundle.precision}; exported, and compared, in float32")
    if bundle.calibration is not None:
        notices.append("logits are not calibrated: the calibration lies beside them, with the class names")
    return tuple(notices)


@contextmanager
def _in_place(out: Path, beside: Path | None) -> Iterator[tuple[Path, Path | None]]:
    """Paths beside both, renamed into place at the end; nothing is left of what fails."""
    try:
        # `out` is renamed last: where it is, the other is.
        with atomic_path(out) as part, nullcontext() if beside is None else atomic_path(beside) as part_beside:
            yield part, part_beside
    except OSError as error:
        raise UserError(f"{out}: could not be written ({error.strerror or error})") from error


class _Program:
    """What is exported of a bundle: BatchNorm folded, float32, the weights in it as constants, integers as such."""

    def __init__(self, bundle: Bundle, form: str, with_preprocessing: bool):
        self.bundle, self.preprocessing = bundle, bundle.preprocessing
        self.with_preprocessing, self.one_at_a_time = with_preprocessing, form == "litert"
        plain = in_float32(bundle)
        self.takes_lengths = plain.definition().takes_lengths
        definition, params, stats = fold_batch_norm(plain.definition(), dict(bundle.params), dict(bundle.stats))
        if bundle.quantization is not None:
            quantization = with_gains(bundle.quantization, params)
            definition = replace(definition, predicting=ARITHMETIC[form](quantization))
        self._folded = definition, params, stats

    @property
    def images(self) -> str:
        """What the first input is called."""
        return self.preprocessing.records

    def inputs(self, batch: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types by name, of a batch of a size."""
        pixels = self.with_preprocessing and self.preprocessing.sequence is None
        found = {
            self.images: jax.ShapeDtypeStruct((batch, *self.preprocessing.shape), jnp.uint8 if pixels else jnp.float32)
        }
        if self.preprocessing.sequence is not None and (self.takes_lengths or self.with_preprocessing):
            found["lengths"] = jax.ShapeDtypeStruct((batch,), jnp.int32)
        return found

    def __call__(self, **arrays: Any) -> jax.Array:
        """Logits [batch, classes], float32."""
        definition, params, stats = self._folded
        images, lengths = arrays[self.images], arrays.get("lengths")
        if self.with_preprocessing:
            images = normalise(images, self.preprocessing, jnp.dtype(jnp.float32), lengths)
        logits, _ = definition.apply(params, stats, images, lengths=lengths if self.takes_lengths else None)
        return logits

    def given(self, batch: Batch) -> dict[str, np.ndarray]:
        """A batch as the program takes it."""
        images = batch.images
        if not self.with_preprocessing:
            images = np.asarray(_normalised(self.preprocessing)(images, batch.lengths))
        arrays = {self.images: images}
        if batch.lengths is not None and "lengths" in self.inputs(1):
            arrays["lengths"] = batch.lengths
        return arrays

    def facts(self) -> dict[str, Any]:
        """All that a program needs to use it."""
        bundle = self.bundle
        batch = 1 if self.one_at_a_time else "batch"
        return {
            "format": FACTS_FORMAT,
            "made_by": f"pcls {version('pcls')}",
            "model": bundle.model,
            "class_names": list(bundle.class_names),
            "inputs": {
                name: {"shape": [batch, *leaf.shape[1:]], "dtype": str(np.dtype(leaf.dtype))}
                for name, leaf in self.inputs(1).items()
            },
            "normalised_inside": self.with_preprocessing,
            "preprocessing": self.preprocessing.to_json(),
            "output": {"logits": {"shape": [batch, len(bundle.class_names)], "dtype": "float32"}},
            "calibration": None if bundle.calibration is None else asdict(bundle.calibration),
            "thresholds": list(bundle.thresholds),
            "quantization": None if bundle.quantization is None else str(bundle.quantization),
            "origin": dict(bundle.origin),
        }

    def inputs_text(self) -> str:
        """In words."""
        sequences = self.preprocessing.sequence is not None
        told = f"{' x '.join(map(str, self.preprocessing.shape))}, float32"
        if sequences:
            told += (
                f" {'as they lie' if self.with_preprocessing else 'normalised'}, padded to {self.preprocessing.height}"
            )
        else:
            told = told.replace("float32", "uint8") if self.with_preprocessing else f"{told}, normalised"
        if self.one_at_a_time:
            lengths = ", and its length" if "lengths" in self.inputs(1) else ""
            return f"one {'sequence' if sequences else 'image'} of {told}{lengths}"
        lengths = ", and their lengths" if "lengths" in self.inputs(1) else ""
        return f"any number of {self.images} of {told}{lengths}"


def in_float32(bundle: Bundle) -> Bundle:
    """The same, computed in float32; in what form recurrences run is each platform's own affair."""
    options = {key: value for key, value in bundle.options.items() if key != "form"}
    return replace(bundle, precision="float32", options=options)


def reference_logits(bundle: Bundle) -> Callable[[Batch], np.ndarray]:
    """A function to the logits of a batch as pcls computes them: BatchNorm as it is, float32, integers as such."""
    normalised = _normalised(bundle.preprocessing)
    definition, own = in_float32(bundle).runnable()
    params, stats = jax.device_put((own, dict(bundle.stats)))

    @jax.jit
    def logits(params: Arrays, stats: Arrays, images: jax.Array, lengths: jax.Array | None) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return definition.apply(params, stats, images, lengths=lengths if definition.takes_lengths else None)[0]

    def of_batch(batch: Batch) -> np.ndarray:
        # One size: one compilation.
        missing = BATCH_SIZE - len(batch.images)
        images = np.pad(batch.images, ((0, missing), (0, 0), (0, 0), (0, 0)))
        lengths = None if batch.lengths is None else np.pad(batch.lengths, (0, missing), constant_values=1)
        return np.asarray(logits(params, stats, normalised(images, lengths), lengths))[: len(batch.images)]

    return of_batch


def _normalised(preprocessing: Preprocessing) -> Callable[[np.ndarray, np.ndarray | None], jax.Array]:
    def normalised(images: np.ndarray, lengths: np.ndarray | None) -> jax.Array:
        steps = None if lengths is None else jnp.asarray(lengths)
        return normalise(jnp.asarray(images), preprocessing, jnp.dtype(jnp.float32), steps)

    return normalised


def _write_stablehlo(program: _Program, path: Path, platforms: Sequence[str]) -> Callable[[Batch], np.ndarray]:
    """Writes it, and returns what runs the file that was written."""
    from jax import export

    here = jax.default_backend().replace("gpu", "cuda")
    if here not in platforms and "cpu" not in platforms:
        raise UserError(
            f"--platforms {','.join(platforms)}: could not be tried on this machine, which has {here}; add cpu"
        )
    # Forms for one kind of device only, where it is for that one only.
    target = platforms[0] if len(platforms) == 1 else "cuda"

    def traced(arrays: Arrays) -> jax.Array:
        with compiling_for(target), jax.default_matmul_precision("highest"):
            return program(**arrays)

    (batch,) = export.symbolic_shape("batch")
    exported = export.export(jax.jit(traced), platforms=platforms)(program.inputs(batch))
    path.write_bytes(exported.serialize())
    loaded = export.deserialize(bytearray(path.read_bytes()))
    device = jax.devices()[0] if here in platforms else jax.devices("cpu")[0]

    def run(batch: Batch) -> np.ndarray:
        with jax.default_device(device):
            return np.asarray(loaded.call(program.given(batch)))

    return run


def _write_onnx(program: _Program, path: Path, platforms: Sequence[str]) -> Callable[[Batch], np.ndarray]:
    """Writes it, and returns what runs the file that was written."""
    try:
        import onnxruntime

        from pcls.deliver.export_graph import BATCH
        from pcls.deliver.export_onnx import to_onnx
    except ImportError as error:
        raise UserError(f"--to onnx needs {error.name}: pip install 'pcls[export]'") from error

    def traced(**arrays: Any) -> jax.Array:
        # The plain forms: onnxruntime has its own.
        with compiling_for("cuda"):
            return program(**arrays)

    facts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in program.facts().items()}
    model = to_onnx(traced, program.inputs(BATCH), facts, producer=("pcls", version("pcls")))
    path.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    # Its failures are told in one line below.
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"{path.name}: onnxruntime cannot open it ({first_line(error)}); please report it") from error

    def run(batch: Batch) -> np.ndarray:
        given = program.given(batch)
        # One alone, then the others: any number must do.
        parts = [part for part in (slice(0, 1), slice(1, None)) if len(batch.images[part])]
        return np.concatenate([session.run(None, {k: v[part] for k, v in given.items()})[0] for part in parts])

    return run


def _write_litert(program: _Program, path: Path, platforms: Sequence[str]) -> Callable[[Batch], np.ndarray]:
    """Writes it, and returns what runs the file that was written."""
    # Its converter holds TensorFlow's kernels, which are not used, and would say at length that they round differently.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        from ai_edge_litert.interpreter import Interpreter

        from pcls.deliver.export_litert import to_litert
    except ImportError as error:
        raise UserError(
            f"--to litert needs {error.name}: pip install 'pcls[litert]', then pip install --no-deps litert-converter"
        ) from error

    def traced(**arrays: Any) -> jax.Array:
        # The plain forms: LiteRT has its own.
        with compiling_for("cuda"):
            return program(**arrays)

    path.write_bytes(to_litert(traced, program.inputs(1)))
    try:
        classify = Interpreter(model_path=str(path)).get_signature_runner()
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path.name}: LiteRT cannot open it ({first_line(error)}); please report it") from error

    def run(batch: Batch) -> np.ndarray:
        given = program.given(batch)
        records = range(len(batch.images))
        return np.concatenate([classify(**{k: v[n : n + 1] for k, v in given.items()})["logits"] for n in records])

    return run
