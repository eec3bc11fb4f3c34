"""Several seeds at once: what each leaves behind is what it would have left alone."""

from contextlib import nullcontext

import numpy as np
import pytest

import pcls
from pcls.cli import main
from pcls.config import load_recipe, with_overrides
from pcls.observe.sinks import read_metrics
from pcls.pretrained.bundle import load_bundle
from pcls.run import seeds as seeds_module
from pcls.run.folder import RunFolder
from pcls.run.seeds import train_seeds, why_apart
from pcls.run.setup import prepare

SEEDS = 2
# Of parameters after 12 steps: sums are taken in another order, and Adam divides small numbers by small ones.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def settings(tiny):
    return tiny | {"train.seed": 5}


@pytest.fixture(scope="module")
def together(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together") / "run"
    return pcls.train_seeds("digits_cnn", settings | {"run.dir": str(folder)}, seeds=SEEDS, together=True)


@pytest.fixture(scope="module")
def apart(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("apart") / "run"
    return pcls.train_seeds("digits_cnn", settings | {"run.dir": str(folder)}, seeds=SEEDS, together=False)


def weights(path):
    return load_bundle(path / "bundle").params


def assert_alike(run, other):
    assert run.evaluation.n == other.evaluation.n == 359
    assert run.evaluation.top1 == pytest.approx(other.evaluation.top1, abs=1.5 / 359)
    assert run.evaluation.loss == pytest.approx(other.evaluation.loss, rel=1e-4)
    found, expected = weights(run.path), weights(other.path)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=TOLERANCE, err_msg=name)


def test_seeds_in_one_program_end_as_each_does_alone(together, apart):
    assert together.seeds == apart.seeds == (5, 6)
    for run, other in zip(together.runs, apart.runs, strict=True):
        assert_alike(run, other)
    first, second = (weights(run.path)["head/kernel"] for run in together.runs)
    assert np.abs(first - second).max() > 100 * TOLERANCE


def test_each_seed_has_the_folder_of_a_run_of_its_own(together, apart):
    for seed, run, other in zip(together.seeds, together.runs, apart.runs, strict=True):
        assert run.path.name == f"run-seed{seed}"
        recipe = RunFolder(run.path).recipe()
        assert with_overrides(recipe, {"run.dir": str(other.path)}) == RunFolder(other.path).recipe()
        assert recipe.train.seed == seed
        names = [sorted(str(file.relative_to(path)) for file in path.glob("*")) for path in (run.path, other.path)]
        assert names[0] == names[1]
        assert "lock" not in names[0]
        rows = [[(row["kind"], row["step"]) for row in read_metrics(path)] for path in (run.path, other.path)]
        assert rows[0] == rows[1]
        assert RunFolder(run.path).status() == {"status": "finished", "step": 12, "steps": 12}
        # From its checkpoint and its recipe alone.
        assert pcls.evaluate(run).top1 == run.evaluation.top1


def test_mean_and_deviation_are_told(together):
    top1 = [run.evaluation.top1 for run in together.runs]
    assert together.mean == pytest.approx(np.mean(top1))
    assert together.deviation == pytest.approx(np.std(top1, ddof=1))
    assert str(together).startswith(f"top-1 {100 * together.mean:.2f} ± {100 * together.deviation:.2f} % over 2 seeds")


def test_a_stopped_program_is_gone_on_with_seed_by_seed(settings, together, tmp_path, monkeypatch):
    monkeypatch.setattr(seeds_module, "stop_requests", lambda *_: nullcontext(lambda step: step == 6))
    path = tmp_path / "run"
    with pytest.raises(pcls.RestartRequested, match="stopped and saved at step 6; each seed goes on alone") as caught:
        pcls.train_seeds("digits_cnn", settings | {"run.dir": str(path)}, seeds=SEEDS, together=True)
    assert str(caught.value).endswith(f"pcls resume {path}-seed5")
    assert RunFolder(f"{path}-seed6").status()["status"] == "stopped"
    assert_alike(pcls.resume(f"{path}-seed6"), together.runs[1])


def test_a_stop_one_after_another_names_the_seeds_that_have_not_begun(settings, tmp_path, stop_after):
    stop_after(3)
    path = tmp_path / "run"
    with pytest.raises(pcls.RestartRequested, match=r"stopped and saved at step 3; .*-seed5; not begun: the seeds 6$"):
        pcls.train_seeds("digits_cnn", settings | {"run.dir": str(path)}, seeds=SEEDS, together=False)
    assert not (tmp_path / "run-seed6").exists()


def test_images_on_the_devices_and_several_steps_a_dispatch_change_nothing(settings, together, tmp_path):
    resident = settings | {"data.on_device": True, "train.steps_per_dispatch": 2, "run.dir": str(tmp_path / "run")}
    found = pcls.train_seeds("digits_cnn", resident, seeds=SEEDS, together=True)
    for run, other in zip(found.runs, together.runs, strict=True):
        assert_alike(run, other)


def test_pretrained_weights_are_where_all_seeds_start(settings, finished_run, tmp_path):
    started = settings | {"model.init": str(finished_run), "optimizer.lr": 1e-9, "run.dir": str(tmp_path / "run")}
    found = pcls.train_seeds("digits_cnn", started | {"train.ema_decay": 0.0}, seeds=SEEDS, together=True)
    expected = weights(finished_run)
    for run in found.runs:
        for name, values in weights(run.path).items():
            np.testing.assert_allclose(values, expected[name], atol=1e-6)


@pytest.mark.parametrize(
    ("times", "where"), [((0.001, 0.002), "in one program"), ((0.002, 0.001), "one after another")]
)
def test_on_cpu_a_measurement_chooses(times, where, settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(seeds_module, "step_seconds", lambda setups: lambda: times)
    chosen = []
    monkeypatch.setattr(seeds_module, "_train_together", lambda *arguments: chosen.append("in one program"))
    monkeypatch.setattr(seeds_module, "_one_by_one", lambda *arguments: chosen.append("one after another"))
    recipe = load_recipe("digits_cnn", settings | {"run.dir": str(tmp_path / "run")})
    train_seeds(recipe, SEEDS, lambda recipe: None)
    assert chosen == [where]
    told = capsys.readouterr().err
    assert f"2 seeds {where}, by a measurement: a step of all takes {1e3 * times[0]:.1f} ms in one program" in told


def test_the_measurement_takes_the_time_of_both(settings):
    setups = [prepare(load_recipe("digits_cnn", settings | {"mesh.sharding": "replicated"}))] * SEEDS
    both = seeds_module.step_seconds(setups, steps=1)()
    assert all(0 < seconds < 60 for seconds in both)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"mesh.fsdp": 2}, "mesh splits the parameters"),
        ({"optimizer.freeze": [{"match": "^conv", "until": "4 steps"}]}, "of several kinds"),
        ({"observe.wandb": "project"}, "observe.wandb takes one run at a time"),
    ],
)
def test_what_keeps_seeds_apart_is_named(settings, changes, reason):
    found = why_apart(prepare(load_recipe("digits_cnn", settings | changes)))
    assert reason in found
    assert bool(reason) == bool(found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds is 0; 2 to 1,024 are needed"),
        (["--seeds", "3", "--profile", "2:3"], "--profile traces one run"),
        (["--seeds", "2", "train.seed=4294967295"], "train.seed is 4294967296"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, capsys):
    assert main(["train", "digits_cnn", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_folder_that_holds_a_run_is_refused_before_any_seed_begins(settings, together, tmp_path):
    path = str(together.runs[1].path).removesuffix("-seed6")
    before = sorted(together.runs[1].path.parent.iterdir())
    with pytest.raises(pcls.UserError, match="run-seed6: holds a finished run"):
        pcls.train_seeds("digits_cnn", settings | {"run.dir": path, "train.seed": 6}, seeds=2)
    assert sorted(together.runs[1].path.parent.iterdir()) == before
