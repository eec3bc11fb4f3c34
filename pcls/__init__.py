"""pcls: pretrain, fine-tune, evaluate and deliver image classifiers with JAX.

    import pcls

    run = pcls.train("digits_cnn", {"train.duration": "5 epochs"})
    tuned = pcls.finetune("photos", model=run, overrides={"train.seed": 1})
    print(pcls.evaluate(tuned).summary())
    for answer in pcls.load(tuned).predict(["photos/cat/1.jpg"]):
        print(answer.path, answer.label, answer.probability)

Importing pcls is cheap: jax is imported when a function that needs it is called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcls.errors import Diverged, PclsError, RestartRequested, UserError

if TYPE_CHECKING:
    from pcls.compression.measured import Compressed
    from pcls.config import Recipe
    from pcls.config.load import Overrides
    from pcls.deliver.classifier import Classifier
    from pcls.deliver.export import Exported
    from pcls.evaluation.label_sets import LabelEvaluation
    from pcls.evaluation.metrics import Evaluation
    from pcls.evaluation.paired import Comparison
    from pcls.planning.plan import RecipePlan
    from pcls.run.calibrate import Calibrated
    from pcls.run.replay import Replay
    from pcls.run.seeds import SeedRuns
    from pcls.run.session import Run
    from pcls.run.sweep import Sweep
    from pcls.run.weights import Start
    from pcls.training.rate_finder import RateCurve
    from pcls.transfer.advise import Advice
    from pcls.transfer.probe import Probes

__all__ = [
    "Diverged",
    "PclsError",
    "RestartRequested",
    "UserError",
    "advise",
    "calibrate",
    "compare",
    "compress",
    "demo",
    "evaluate",
    "export",
    "find_rate",
    "finetune",
    "load",
    "plan",
    "probe",
    "replay",
    "report",
    "resume",
    "serve",
    "sweep",
    "train",
    "train_seeds",
]


def train(
    recipe: str | Path | Recipe, overrides: Overrides = (), *, profile: range | None = None, resume: bool = False
) -> Run:
    """Trains a recipe in a new run folder.

    Args:
      recipe: a YAML file, the name of a recipe that comes with pcls, or a `Recipe`.
      overrides: `["train.batch_size=64", ...]` or `{"train.batch_size": 64, ...}`.
      profile: steps to trace with jax's profiler, counted from 1; None: none.
      resume: go on with the run of this recipe in the folder, where there is one.

    Returns:
      The run: its folder and its last evaluation.

    Raises:
      UserError: the recipe, the data or the devices are at fault; one line that says what to do.
      RestartRequested: stopped by Ctrl-C or SIGTERM, saved; `resume` goes on.
      Diverged: no finite loss any more.
    """
    resolved = _recipe(recipe, overrides)

    from pcls.run.train import train_or_resume, train_recipe

    if resume:
        return train_or_resume(resolved, _start, profile=profile)
    return train_recipe(resolved, _start(resolved), profile=profile)


def train_seeds(
    recipe: str | Path | Recipe, overrides: Overrides = (), *, seeds: int, together: bool | None = None
) -> SeedRuns:
    """Trains a recipe with several seeds, in one program where that is faster, each in a new folder of its own.

    Args:
      recipe, overrides: as in `train`; the folders are `RUN.DIR-seedN`, from N = `train.seed` on.
      seeds: how many, 2 or more.
      together: in one program; None: on accelerators, and on CPU where a short measurement finds it faster.

    Returns:
      The runs, with mean and deviation of their top-1.

    Raises:
      UserError: as `train`, or the seeds cannot share a program and are to.
      RestartRequested: stopped by Ctrl-C or SIGTERM, saved; each run is resumed alone.
      Diverged: some have no finite loss any more; the others are finished.
    """
    resolved = _recipe(recipe, overrides)

    from pcls.run.seeds import train_seeds as train_together

    return train_together(resolved, seeds, _start, together=together)


def resume(run: str | Path | Run, overrides: Overrides = (), *, profile: range | None = None) -> Run:
    """Goes on with a stopped run, bit for bit on the same devices.

    Args:
      run: a run or its folder.
      overrides: changes, for example `{"mesh.fsdp": 4}` on other devices or a longer `train.duration`.
      profile: steps to trace with jax's profiler, counted from 1; None: none.
    """
    from pcls.run.train import resume_run

    return resume_run(_path(run), overrides, profile=profile)


def finetune(
    data: str | Path,
    model: str | Path | Run,
    overrides: Overrides = (),
    *,
    recipe: str = "auto",
    keep_head: bool = False,
) -> Run:
    """Fine-tunes pretrained weights on data, in a new run folder.

    Args:
      data: a folder with one folder of images a class, a folder of idx files, `tfds:NAME[:split]`, or `digits`.
      model: a run, its folder, a bundle's folder, or public weights by name.
      overrides: changes to the fine-tuning recipe.
      recipe: `probe` (the head alone), `gradual` (the head, then the layers from the top), `full` (all at once, the
        lower the slower), `scratch` (from random weights), or `auto`: by the number of images.
      keep_head: refuse data of other classes than those of the weights; else they get a new head.
    """
    from pcls.transfer.finetune import finetune as finetune_run

    return finetune_run(str(data), _path(model), overrides, recipe=recipe, keep_head=keep_head)


def probe(
    model: str | Path | Run,
    data: str | Path,
    overrides: Overrides = (),
    *,
    kinds: Sequence[str] = (),
    shots: Sequence[int | None] = (1, 5, 20, 100, None),
    seeds: int = 3,
) -> Probes:
    """Fits simple classifiers to a model's frozen features: how far they go on some data, with few records or all.

    Args:
      model: a run, its folder, a bundle's folder, or public weights by name.
      data: as in `finetune`.
      overrides: of `data.*`.
      kinds: of `knn`, `mean`, `lda` and `linear`; empty: all.
      shots: records a class to fit to; None: all.
      seeds: draws of these records.

    Returns:
      Accuracies on the held-out records.

    Raises:
      UserError: the weights or the data are at fault, or there is no such kind.
    """
    from pcls.transfer.probe import probe as probe_features

    return probe_features(_path(model), str(data), overrides, kinds=kinds, shots=shots, seeds=seeds)


def advise(
    data: str | Path, *, device: str = "", budget: float = 3600.0, probe: str | Path | Run | None = None
) -> Advice:
    """Proposes what to start from, and how, for some data.

    Args:
      data: as in `finetune`.
      device: a chip, or `cpu`; empty: the first that jax finds.
      budget: seconds that training may take.
      probe: a run, its folder, a bundle's folder, or public weights by name, which are fetched: how far its frozen
        features go on a sample of the data is told too. None: that of the proposed weights, where they lie in the
        cache and this is quick.

    Raises:
      UserError: the data cannot be opened, nothing is documented of the device, or nothing can be proposed.
    """
    from pcls.planning.limits import limits_of
    from pcls.transfer.advise import advise as advise_facts
    from pcls.transfer.advise import facts_of
    from pcls.transfer.similarity import probed_unasked, similarity, similarity_line, with_similarity

    limits = limits_of(device)
    advice = advise_facts(facts_of(str(data)), limits, budget)
    # Limits of another device say nothing of the time here.
    source = str(_path(probe)) if probe else "" if device else probed_unasked(advice, limits)
    return with_similarity(advice, similarity_line(similarity(source, str(data)))) if source else advice


def find_rate(
    recipe: str | Path | Recipe,
    overrides: Overrides = (),
    *,
    steps: int = 100,
    lowest: float = 1e-7,
    highest: float = 10.0,
) -> RateCurve:
    """Raises the learning rate from batch to batch and reads good ones off the loss; nothing is written.

    Args:
      recipe, overrides: as in `train`.
      steps: rates that are tried.
      lowest, highest: of them.

    Returns:
      The curve, with the suggestions `valley` and `steepest` for `optimizer.lr`.
    """
    resolved = _recipe(recipe, overrides)

    from pcls.run.rate_finder import find_rate as find

    return find(resolved, _start(resolved), steps=steps, lowest=lowest, highest=highest)


def sweep(
    recipe: str | Path,
    arguments: Sequence[str],
    folder: str | Path,
    *,
    strategy: str = "random",
    trials: int = 0,
    seed: int = 0,
    metric: str = "top1",
    say: Callable[[str], None] | None = None,
) -> Sweep:
    """Trains a recipe with several settings; processes that are given the same folder share the work.

    Args:
      recipe: a YAML file, or the name of a recipe that comes with pcls.
      arguments: `key=value`; tried are `log:a..b`, `a..b` and lists `a,b,c`; `train.seed` repeats each setting.
      folder: of the sweep.
      strategy: `random`, `grid` or `halving`.
      trials: settings that are drawn by `random` and `halving`; 0: 10.
      seed: of the draws.
      metric: `top1`, `top5`, `balanced`, `macro_f1` or `loss`.
      say: hears of every trial; None: standard error does.

    Returns:
      The settings, the best first.

    Raises:
      UserError: before anything starts: a key, a range or a recipe that cannot be, or another sweep's folder.
      RestartRequested: stopped by Ctrl-C or SIGTERM; the same call goes on.
    """
    from pcls.run.trials import base_recipe, checked_strategy, read_space

    # All that can be told without jax, at once.
    chosen = checked_strategy(strategy)
    base_recipe(str(recipe), read_space(arguments))

    from pcls.run.sweep import sweep as run_sweep

    return run_sweep(
        str(recipe),
        arguments,
        Path(folder),
        strategy=chosen,
        trials=trials,
        seed=seed,
        metric=metric,
        start_of=_start,
        say=say or _to_stderr,
    )


def evaluate(
    run: str | Path | Run, *, data: str | Path = "", labels: str | Path = "", by: str = "", tta: str = ""
) -> Evaluation | LabelEvaluation:
    """Evaluates the newest checkpoint of a run on its held-out records; every one is counted, once.

    Args:
      run: a run or its folder; with `data` also a bundle's folder, or public weights by name.
      data: another set, named as in `finetune`, on which the bundle is evaluated: its evaluation part, else all of it.
        Its classes are those of the model, or some of them, by name or by number. Empty: the run's own.
      labels: a JSON file with several right answers a record of `data`, as ImageNet-ReaL's.
      by: a column of the manifest, for each of whose values accuracy is told too.
      tta: `none`, `mirror` or `shift`, instead of what the recipe says.
    """
    if data:
        from pcls.run.bundles import open_bundle
        from pcls.run.other_data import evaluate_on

        return evaluate_on(open_bundle(_path(run)), str(data), labels=str(labels), by=by, tta=tta)
    if labels:
        raise UserError("--labels is for the records of another set; name it: --data FOLDER")

    from pcls.run.evaluate import evaluate_run

    return evaluate_run(_path(run), tta=tta, by=by)


def calibrate(run: str | Path | Run, *, method: str = "auto", records: int = 0) -> Calibrated:
    """Calibrates the probabilities of a finished run on its held-out records; its bundle then predicts with it.

    Args:
      run: a run or its folder.
      method: `temperature`, `vector` (a scale and a bias a class), `none` (takes it away), or `auto`.
      records: held-out records to take at most; 0: all.
    """
    from pcls.run.calibrate import calibrate_run

    return calibrate_run(_path(run), method=method, records=records)


def compress(
    run: str | Path | Run,
    *,
    target: str = "int8",
    weights_only: bool = False,
    bits: int = 8,
    records: int = 256,
    max_loss: float = 1.0,
    steps: int = 3,
    finetune: str = "",
    score: str = "l2",
    out: str | Path = "",
    say: Callable[[str], None] | None = None,
) -> Compressed:
    """Writes a smaller bundle of a finished run; accuracy, size and latency are measured before and after.

    Args:
      run: a run or its folder.
      target: `int8`: integers for weights and for the inputs of convolutions and dense layers. `flops=0.5`: channels
        are removed until that share of the FLOPs is left. `size=1MB`: of the weight file, by integer weights and, where
        these are not enough, by removing channels. `latency=2ms`: of a prediction of one image on this machine, by
        removing channels.
      weights_only: inputs stay as they are; with `int8`.
      bits: of integer weights, 8 or 4; with `int8` and `size`.
      records: with `int8`: training records that the ranges of inputs are taken from, and held-out ones that each layer
        by itself is tried on.
      max_loss: points of top-1 accuracy that it may cost.
      steps: in which channels are removed; after each the network is trained a little, with the run as its teacher.
      finetune: how long each time, as `2 epochs`; empty: a fifth of the run's length.
      score: which channels go: those whose kernels are smallest (`l2`, `l1`), or the scales of their BatchNorm
        (`scale`).
      out: folder of the new bundle; empty: beside the run's own.
      say: hears of each step; None: standard error does.

    Raises:
      UserError: no such target, the run is not finished, its network cannot be pruned, or more is lost; nothing is
        written then.
    """
    from pcls.compression.pipeline import compress_run

    return compress_run(
        _path(run),
        target=target,
        weights_only=weights_only,
        bits=bits,
        records=records,
        max_loss=max_loss,
        steps=steps,
        finetune=finetune,
        score=score,
        out=out,
        start_of=_start,
        say=say or _to_stderr,
    )


def compare(first: str | Path | Run, second: str | Path | Run) -> Comparison:
    """Compares two finished runs on the same held-out records, in pairs.

    Raises:
      UserError: their records or classes are not the same, or one of them is not finished.
    """
    from pcls.run.compare import compare_runs

    return compare_runs(_path(first), _path(second))


def replay(run: str | Path | Run, step: int) -> Replay:
    """Takes a step of a run once more, from the checkpoint before it, and tells what in it is not finite.

    Args:
      run: a run or its folder.
      step: counted from 1.

    Raises:
      UserError: there is no such run or step, or no way to it.
    """
    from pcls.run.replay import replay_step

    return replay_step(_path(run), step)


def report(run: str | Path | Run, *others: str | Path | Run, out: str | Path = "", png: str | Path = "") -> Path:
    """Writes a run's report, or one of several runs side by side: one HTML page that needs nothing else.

    Args:
      run: a run or its folder.
      others: more of them.
      out: the file; empty: `report.html` in the run's folder, `comparison.html` in the first's of several.
      png: a file for the curves as one picture; empty: none.

    Returns:
      Its path.

    Raises:
      UserError: no run, or its data is gone.
    """
    from pcls.evaluation.report import write, write_png
    from pcls.planning.limits import limits_of
    from pcls.run.report import default_path, report_of

    paths = [_path(one) for one in (run, *others)]
    found = report_of(paths, limits_of)
    if png:
        write_png(found, Path(png))
    return write(found, Path(out) if out else default_path(paths))


def plan(
    recipe: str | Path | Recipe,
    overrides: Overrides = (),
    *,
    topology: str,
    slices: int = 1,
    largest: bool = True,
    say: Callable[[str], None] | None = None,
) -> RecipePlan:
    """Compiles a recipe's training step for devices that need not be here, and says what it costs them.

    Args:
      recipe, overrides: as in `train`.
      topology: `v5e:16x16`, `v6e:4x4`, `v4:2x2x4`, `v5p`, `cpu-8` ...; TPUs need `pip install 'pcls[tpu]'`.
      slices: TPU slices of that shape.
      largest: whether to look for the largest batch that fits, by some more compilations.
      say: hears of each compilation; None: standard error does.

    Raises:
      UserError: no such devices, or the recipe does not suit them.
    """
    resolved = _recipe(recipe, overrides)

    from pcls.planning.topology import parse_topology, prepare_environment

    # Before anything asks jax for devices.
    prepare_environment(parse_topology(topology, slices))

    from pcls.planning.plan import plan_recipe

    return plan_recipe(resolved, topology, slices=slices, largest=largest, say=say or _to_stderr)


def load(source: str | Path | Run) -> Classifier:
    """Loads a finished run or a bundle as a classifier with a `predict` method."""
    from pcls.deliver.classifier import Classifier
    from pcls.parallel.tuning import tune_process
    from pcls.pretrained.bundle import FACTS, load_bundle

    tune_process()
    path = _path(source)
    if (path / FACTS).is_file():
        return Classifier(load_bundle(path))

    # It knows runs and public weights, and so more code than a bundle needs.
    from pcls.run.bundles import open_bundle

    return Classifier(open_bundle(path))


def export(
    source: str | Path | Run,
    *,
    to: str,
    out: str | Path = "",
    with_preprocessing: bool = False,
    platforms: Sequence[str] = (),
    images: str | Path = "",
) -> Exported:
    """Writes a classifier as a file that other programs run, and compares its logits with those of pcls.

    Args:
      source: a run, its folder, a bundle's folder, or public weights by name.
      to: `stablehlo`, `onnx`, `litert`, or `safetensors` (weights by timm's names).
      out: a new file; empty: the source's name with the format's ending, in the working folder.
      with_preprocessing: the program takes uint8 images at the model's size and normalises them itself.
      platforms: of StableHLO, some of `cpu`, `cuda`, `rocm` and `tpu`; empty: all but rocm.
      images: a folder of files to compare on; empty: held-out records of the run, else random ones.

    Raises:
      UserError: no such format or platform, the file is there already or cannot be written, a package is missing, or
        the logits differ; nothing is left then.
    """
    from pcls.deliver.export import SUFFIXES, check_request, export_bundle
    from pcls.deliver.export_parity import sample_of
    from pcls.run.bundles import open_bundle

    path = _path(source)
    target = Path(out) if out else Path(f"{path.name}{SUFFIXES.get(to, '')}")
    # Before weights are read, or fetched.
    check_request(to, target, with_preprocessing=with_preprocessing, platforms=platforms)
    bundle = open_bundle(path)
    return export_bundle(
        bundle,
        to,
        target,
        lambda: sample_of(path, str(images), bundle.preprocessing),
        with_preprocessing=with_preprocessing,
        platforms=platforms,
    )


def serve(
    source: str | Path | Run,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: str | Path = "",
    max_batch: int = 32,
    max_wait: float = 0.0,
    queue: int = 256,
    max_body: str = "10MB",
    timeout: float = 30.0,
    say: Callable[[str], None] | None = None,
) -> None:
    """Answers for images over HTTP until SIGTERM or Ctrl-C; what was accepted by then is still answered.

    Args:
      source: a finished run, a bundle, or public weights by name.
      host, port: to listen on; port 0: any that is free.
      token_file: with the bearer token to ask for; empty: the variable PCLS_SERVE_TOKEN of the environment, where set.
      max_batch: images that the model is asked about together.
      max_wait: milliseconds that a batch's first image waits for others.
      queue: images that may wait.
      max_body: the largest request, as `10MB` or `500KB`.
      timeout: seconds until a request must have its answer.
      say: hears of warnings, of the start and of the end; None: standard error does.

    Raises:
      UserError: an option, the source or the address is at fault, or packages are missing.
    """
    from pcls.deliver.serve import serve as serve_loaded
    from pcls.deliver.serving.limits import Limits, bytes_of

    limits = Limits(max_batch, max_wait / 1000, queue, bytes_of(max_body), timeout)
    serve_loaded(
        lambda: load(source),
        host=host,
        port=port,
        token_file=str(token_file),
        limits=limits,
        say=say or (lambda text: _to_stderr(f"pcls: {text}")),
    )


def demo(folder: str | Path | None = None) -> Path:
    """Pretrains, fine-tunes on 25 images, compares with training from scratch, and returns the report's path."""
    from pcls.transfer.demo import run_demo

    return run_demo(None if folder is None else Path(folder))


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _recipe(recipe: str | Path | Recipe, overrides: Overrides) -> Recipe:
    from pcls.config import load_recipe, with_overrides

    return load_recipe(recipe, overrides) if isinstance(recipe, str | Path) else with_overrides(recipe, overrides)


def _start(recipe: Recipe) -> Start | None:
    """The pretrained weights that a recipe names."""
    from pcls.transfer.start import start_from

    return start_from(recipe.model.init, recipe) if recipe.model.init else None


def _path(run: Any) -> Path:
    return Path(run) if isinstance(run, str | Path) else Path(run.path)
