"""Runs from end to end: killed, stopped, resumed, refused."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import train as trainer
from experiments.data import DataConfig
from experiments.models import ModelConfig
from experiments.train import TrainConfig, main
from experiments.train_config import typed

OPTIONS = {
    **{"recipe": "dropout", "steps": 90, "ema-decay": 0.9, "devices": 1, "log-every": 7, "eval-every": 20},
    **{"data.per-class": 20, "data.batch-size": 32, "model.width": 16, "model.depth": 1},
}


def command(out, **more):
    options = {**OPTIONS, "out": out, **{name.replace("_", "-"): value for name, value in more.items()}}
    return ["--no-tensorboard", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


def contents(folder):
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Every run here but that of the subprocess is of one program."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("train") / "whole"
    assert main(command(out)) == 0
    return out


def same_results(out, whole):
    return all((out / name).read_bytes() == (whole / name).read_bytes() for name in ("metrics.jsonl", "final.json"))


def test_run_writes_each_line_once_and_final_results(whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    steps = lambda split: [line["step"] for line in lines if line["split"] == split]
    assert steps("train") == [*range(7, 90, 7), 90]
    assert steps("validation") == [20, 40, 60, 80, 90]
    assert steps("test") == [90]
    final = json.loads((whole / "final.json").read_text())
    assert final["step"] == 90 and final["recipe"] == "dropout"
    assert final["test"]["accuracy"] > 0.6 and final["test"]["ema_accuracy"] > 0.6
    for split in ("validation", "test"):
        last = next(line for line in reversed(lines) if line["split"] == split)
        assert final[split] == {name: value for name, value in last.items() if name not in ("step", "split")}


def test_killed_run_resumes_to_the_same_bits(whole, tmp_path):
    out = tmp_path / "killed"
    arguments = command(out, checkpoint_every=3)
    child = subprocess.Popen([sys.executable, "-m", "experiments.train", *arguments], stderr=subprocess.PIPE)
    saved = lambda: any(path.name.isdigit() for path in out.glob("checkpoints/*"))
    while child.poll() is None and not saved():
        time.sleep(0.005)
    child.kill()
    assert child.wait() == -signal.SIGKILL, child.stderr.read().decode()
    assert not (out / "final.json").exists() and saved()
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 89, "split": "tr')  # what a dying process may leave
    assert main(arguments) == 0
    assert same_results(out, whole)
    assert not list(out.glob("checkpoints/*tmp*"))


def test_stopped_run_saves_its_step_and_resumes_to_the_same_bits(whole, tmp_path, monkeypatch, capsys):
    out = tmp_path / "stopped"
    step_of = {signal.SIGTERM: 31, signal.SIGINT: 58}
    pending = []
    put = trainer._inputs

    def interrupting(batch):
        count[0] += 1
        if pending and count[0] == step_of[pending[0]]:
            os.kill(os.getpid(), pending.pop())
        return put(batch)

    monkeypatch.setattr(trainer, "_inputs", interrupting)
    for number, before, status in ((signal.SIGTERM, 0, 143), (signal.SIGINT, 31, 130)):
        count, handler = [before], signal.getsignal(number)
        pending.append(number)
        assert main(command(out)) == status
        assert max(int(path.name) for path in out.glob("checkpoints/*")) == step_of[number]
        assert f"stopped by {number.name} after step {step_of[number]}" in capsys.readouterr().out
        assert signal.getsignal(number) is handler
    assert main(command(out)) == 0
    assert "going on from step 58 of 90" in capsys.readouterr().err
    assert same_results(out, whole)


@pytest.mark.parametrize(("before", "after", "spread"), [(8, 1, False), (1, 8, True)])
def test_run_goes_on_with_other_devices(whole, tmp_path, capsys, before, after, spread):
    out = tmp_path / "moved"
    more = ["--shard-parameters"] if spread else []
    assert main([*command(out, devices=before, stop_at_step=45), *more]) == 0
    assert main([*command(out, devices=after), *more]) == 0
    assert f"on {after} devices, {before} devices before: equal up to rounding" in capsys.readouterr().err
    lines, expected = ((folder / "metrics.jsonl").read_text().splitlines() for folder in (out, whole))
    for line, other in zip(map(json.loads, lines), map(json.loads, expected), strict=True):
        assert line.keys() == other.keys() and (line.pop("split"), line.pop("step")) == (other.pop("split"), other.pop("step"))
        assert line == pytest.approx(other, rel=1e-3, abs=1e-3)


def test_run_that_dies_between_its_last_checkpoint_and_its_results_writes_them(whole, tmp_path):
    out = tmp_path / "almost"
    shutil.copytree(whole, out)
    (out / "final.json").unlink()
    assert main(command(out)) == 0
    assert same_results(out, whole)


def test_finished_run_does_nothing(whole, capsys):
    before = contents(whole)
    assert main(command(whole, checkpoint_every=17, keep=1)) == 0  # neither changes what is computed
    assert "nothing to do" in capsys.readouterr().out
    assert contents(whole) == before


def test_changed_configuration_is_refused(whole, capsys):
    before = contents(whole)
    assert main(command(whole, learning_rate=0.1, **{"data.label-noise": 0.25})) == 2
    error = capsys.readouterr().err
    assert "learning_rate: 0.05 there, 0.1 now" in error and "data.label_noise: 0.0 there, 0.25 now" in error
    assert "seed" not in error and "Traceback" not in error
    assert contents(whole) == before


def test_foreign_folder_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("!")
    assert main(command(tmp_path)) == 2
    assert "neither empty nor the folder of a run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_diverging_run_stops_and_keeps_its_last_good_checkpoint(tmp_path, capsys):
    out = tmp_path / "diverges"
    assert main(command(out, learning_rate=1e30, checkpoint_every=1)) == 3
    error = capsys.readouterr().err
    assert error.startswith("step 2 met NaN or infinity: first in the logits (loss ") and "Traceback" not in error
    assert f"the checkpoint of step 1 in {out} is kept" in error
    assert [path.name for path in out.glob("checkpoints/*")] == ["1"]
    assert not (out / "final.json").exists()


def test_unknown_recipe_names_the_nearest(tmp_path, capsys):
    assert main(["--recipe", "smam", "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert "'smam'" in error and "did you mean sam" in error and "Traceback" not in error
    assert not (tmp_path / "x").exists()


def test_misspelt_option_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--data.lable-noise", "0.2"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "--data.label-noise" in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("epochs", 0), ("epochs", 1.5), ("epochs", True), ("steps", 0), ("log_every", 0), ("eval_every", -1)],
        *[("checkpoint_every", 0), ("keep", 0), ("seed", -1), ("seed", 2**32), ("devices", 0), ("stop_at_step", -1)],
        *[("learning_rate", 0.0), ("learning_rate", float("nan")), ("learning_rate", float("inf")), ("clip_norm", -1.0)],
        *[("timeout", 0), ("num_processes", 0), ("process_id", -1)],
        *[("ema_decay", 1.0), ("ema_decay", 0.0), ("ema_decay", float("nan"))],
    ],
)
def test_configuration_refuses(field, value):
    with pytest.raises(ValueError, match=rf"TrainConfig: {field} must be .*got {value}"):
        TrainConfig(**{field: value})


def test_configuration_refuses_what_does_not_fit_together():
    with pytest.raises(ValueError, match="batch_size must be a multiple of devices = 3, got 128"):
        TrainConfig(devices=3)
    with pytest.raises(ValueError, match=r"microbatches must be a divisor of data.batch_size = 128, got 3"):
        TrainConfig(microbatches=3)
    with pytest.raises(ValueError, match="recipe 'sam' has no 'roh'; did you mean rho"):
        TrainConfig(recipe="sam", hyperparameters={"roh": 0.1})
    with pytest.raises(ValueError, match="hyperparameters: rho must be a finite number, got nan"):
        TrainConfig(recipe="sam", hyperparameters={"rho": float("nan")})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"coordinator": "a:1", "num_processes": 2},
            "process_id must be given with coordinator and num_processes, or all",
        ),
        ({"process_id": 0}, "coordinator must be given with process_id, or all left out"),
        ({"coordinator": "a", "num_processes": 2, "process_id": 0}, "coordinator must be host:port, got 'a'"),
        ({"coordinator": "a:99999", "num_processes": 2, "process_id": 0}, "coordinator must be host:port, got 'a:99999'"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 2}, "process_id must be below num_processes = 2, got 2"),
        (
            {"coordinator": "a:1", "num_processes": 3, "process_id": 2},
            "batch_size must be a multiple of num_processes = 3",
        ),
        ({"local_devices": (0, 0)}, "local_devices must be different numbers from 0 on"),
        ({"distributed": False, "local_devices": (0,)}, "local_devices must be left out without --distributed"),
        (
            {"distributed": False, "coordinator": "a:1", "num_processes": 2, "process_id": 0},
            "coordinator must be left out without --distributed, got 'a:1'",
        ),
    ],
)
def test_configuration_refuses_processes_that_cannot_meet(fields, said):
    with pytest.raises(ValueError, match=said):
        TrainConfig(**{"distributed": True, **fields})


def test_batch_that_does_not_fit_is_refused_before_training(tmp_path):
    config = TrainConfig(data=DataConfig(per_class=2, batch_size=64), out=tmp_path / "x", progress=False)
    with pytest.raises(ValueError, match="batch_size must be at most the 20 training examples, got 64"):
        trainer.train(config)
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 8 devices"):
        trainer.train(dataclasses.replace(config, data=DataConfig(batch_size=12), model=ModelConfig(width=8), out=tmp_path / "y"))
    assert not list(tmp_path.iterdir())


def test_whole_hyperparameters_stay_integers():
    given = typed("multi_sample_dropout", {"num_samples": 4.0, "rate": 1.0})
    assert given == {"num_samples": 4, "rate": 1.0} and isinstance(given["num_samples"], int) and isinstance(given["rate"], float)
