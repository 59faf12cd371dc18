"""Several processes as one run, for real: two on this machine, of two virtual devices each, killed, stopped, refused, resumed."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from experiments.train import main

TIMEOUT = 30
OPTIONS = {
    **{"recipe": "cutmix", "steps": 40, "ema-decay": 0.9, "log-every": 7, "eval-every": 20, "checkpoint-every": 4},
    **{"data.per-class": 8, "data.batch-size": 16, "model.width": 8, "model.depth": 1},
}


def command(out, **more):
    options = {**OPTIONS, "out": out, **{name.replace("_", "-"): value for name, value in more.items()}}
    return ["--no-tensorboard", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


@contextlib.contextmanager
def pair(out, differing=({}, {}), **more):
    """Two processes that train together, and are gone afterwards whatever happens."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    flags = re.sub(r"(device_count)=\d+", r"\1=2", os.environ["XLA_FLAGS"])
    cache = {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    environment = {**os.environ, **cache, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    where = {"coordinator": f"localhost:{port}", "num_processes": 2, "timeout": TIMEOUT, **more}
    children = []
    try:
        for process, own in enumerate(differing):
            arguments = ["--distributed", *command(out, **where, process_id=process, **own)]
            start = [sys.executable, "-m", "experiments.train", *arguments]
            children.append(subprocess.Popen(start, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


def ended(children):
    """Their exit statuses, what they printed, and the errors that they told."""
    said = [child.communicate(timeout=8 * TIMEOUT) for child in children]
    return [child.returncode for child in children], *zip(*said, strict=True)


def wait_for_checkpoint(out, children, least):
    saved = lambda: [int(path.name) for path in out.glob("checkpoints/*") if path.name.isdigit()]
    while max(saved(), default=0) < least and all(child.poll() is None for child in children):
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of two processes that nothing disturbed."""
    out = tmp_path_factory.mktemp("hosts") / "whole"
    with pair(out) as children:
        statuses, printed, errors = ended(children)
    assert statuses == [0, 0], errors
    assert "finished at step 40" in printed[0] and "finished" not in printed[1]
    return out


def same_results(out, whole):
    return all((out / name).read_bytes() == (whole / name).read_bytes() for name in ("metrics.jsonl", "final.json"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_process_ends_the_other_and_both_resume_to_the_same_bits(whole, tmp_path, victim):
    out = tmp_path / "killed"
    with pair(out) as children:
        wait_for_checkpoint(out, children, 8)
        children[victim].kill()
        statuses, _, errors = ended(children)
    other = 1 - victim
    assert statuses[victim] == -signal.SIGKILL and statuses[other] == 4, errors
    last = errors[other].splitlines()[-1]
    expected = (
        rf"{out}: another process of this run is gone at step \d+; the checkpoint of step \d+ is kept, and the same command"
    )
    # Orbax may log its own trouble with the checkpoint that was being written.
    assert re.match(expected, last) and "experiments/train" not in errors[other], errors[other]
    assert not (out / "final.json").exists()
    (out / "checkpoints" / "36.orbax-checkpoint-tmp" / "state").mkdir(parents=True)  # what a dying process may leave
    with pair(out) as children:
        statuses, _, errors = ended(children)
    assert statuses == [0, 0] and re.search(r"going on from step (8|12|16|20|24|28) of 40\n", errors[0]), errors
    assert same_results(out, whole)
    assert not list(out.glob("checkpoints/*tmp*"))


@pytest.mark.slow
def test_signal_to_one_process_stops_both_at_one_step_to_go_on_to_the_same_bits(whole, tmp_path):
    out = tmp_path / "stopped"
    with pair(out, checkpoint_every=3) as children:
        wait_for_checkpoint(out, children, 3)
        children[1].send_signal(signal.SIGTERM)
        statuses, printed, errors = ended(children)
    assert statuses == [143, 143], errors
    step = int(re.search(r"stopped by SIGTERM after step (\d+)", printed[0])[1])
    assert 0 < step < 40 and (out / "checkpoints" / str(step)).is_dir()
    with pair(out) as children:
        assert ended(children)[0] == [0, 0]
    assert same_results(out, whole)


@pytest.mark.slow
def test_processes_that_never_met_end(tmp_path):
    with pair(tmp_path / "absent", timeout=8) as children:
        children[1].kill()
        statuses, _, errors = ended(children)
    assert statuses[0] == 4
    assert re.search(r"distributed: not all processes met at localhost:\d+ within 8 s\n$", errors[0])
    assert not (tmp_path / "absent").exists()


@pytest.mark.slow
def test_what_one_process_refuses_ends_both(tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("!")
    nowhere = {"data.data_dir": tmp_path / "foreign" / "thesis.tex"}
    for out, differing, said in (
        ("foreign", ({}, {}), "foreign is neither empty nor the folder of a run"),
        ("rates", ({}, {"learning_rate": 0.1}), "options (learning_rate: 0.05 on process 0, 0.1 on process 1)"),
        ("data", ({}, nowhere), "cannot write to"),
    ):
        with pair(tmp_path / out, differing=differing) as children:
            statuses, _, errors = ended(children)
        assert statuses == [2, 2], errors
        assert all(said in error and "Traceback" not in error for error in errors), errors
    assert [path.name for path in tmp_path.rglob("*")] == ["foreign", "thesis.tex"]


@pytest.mark.slow
def test_divergence_ends_both_and_keeps_the_last_good_checkpoint(tmp_path):
    with pair(tmp_path / "diverges", learning_rate=1e30, checkpoint_every=1) as children:
        statuses, _, errors = ended(children)
    assert statuses == [3, 3], errors
    assert all("step 2 met NaN or infinity" in error and "the checkpoint of step 1" in error for error in errors)


@pytest.mark.slow
def test_run_of_two_processes_goes_on_with_one(tmp_path, capsys):
    out, alone = tmp_path / "moved", tmp_path / "alone"
    with pair(out, stop_at_step=20) as children:
        statuses, _, errors = ended(children)
    assert statuses == [0, 0], errors
    assert main(command(out, devices=4)) == 0
    assert "going on from step 20 of 40 on 4 devices, 4 devices of 2 processes before" in capsys.readouterr().err
    assert main(command(alone, devices=4)) == 0
    lines, expected = ((folder / "metrics.jsonl").read_text().splitlines() for folder in (out, alone))
    for line, other in zip(map(json.loads, lines), map(json.loads, expected), strict=True):
        assert (line.pop("split"), line.pop("step")) == (other.pop("split"), other.pop("step"))
        assert line == pytest.approx(other, rel=1e-3, abs=1e-3)
