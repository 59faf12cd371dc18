"""The parts of the trainer: the compiled step on meshes, its guard, the checkpoints, what it writes, and the measures."""

import dataclasses
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from experiments import checkpoints as saving
from experiments import guard, meshes
from experiments.checkpoints import Checkpoints, claimed
from experiments.data import DataConfig, Split, evaluation_batches
from experiments.evaluation import Scores, evaluate, measure, score
from experiments.models import ModelConfig
from experiments.train_config import TrainConfig
from experiments.train_program import make_program
from experiments.writers import MetricsFile, Writer, write_json

# The step on meshes.

RATE, CLIP, DECAY, STEPS, LOG = 0.1, 0.5, 0.8, 4, 3


def split(seed, size):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, size).astype(np.int32)
    images = rng.normal(size=(size, 4, 4, 1)).astype(np.float32) + labels[:, None, None, None]
    return Split(images, labels, labels, np.arange(size, dtype=np.int32))


@pytest.fixture(scope="module")
def runs():
    """A few steps with everything on, on 1 device, 8, and 8 with the state spread over them."""
    data = types.SimpleNamespace(train=split(0, 64), num_classes=4, image_shape=(4, 4, 1))
    config = TrainConfig(
        recipe="sam",
        data=DataConfig(batch_size=16),
        model=ModelConfig(width=16),
        learning_rate=RATE,
        clip_norm=CLIP,
        ema_decay=DECAY,
        log_every=LOG,
    )
    found = {}
    for name, devices, spread in (("one", 1, False), ("eight", 8, False), ("spread", 8, True)):
        mesh = meshes.data_mesh(devices)
        with jax.set_mesh(mesh):
            program = make_program(dataclasses.replace(config, shard_parameters=spread), data, mesh, 4, STEPS)
            carry = program.init(jax.random.key(0), data.train.labels)
            params, means, first = [jax.device_get(carry.train.params)], [], carry.train.params["stem"]["kernel"].sharding
            for i in range(STEPS):
                examples = data.train.take(np.arange(16 * i, 16 * i + 16) % 64)
                batch = {name: examples[name] for name in ("image", "label", "index")}
                carry, _, mean = program.step(carry, meshes.put_batch(mesh, batch))
                params.append(jax.device_get(carry.train.params))
                means.append(jax.device_get(mean))
        found[name] = types.SimpleNamespace(
            program=program, mesh=mesh, batch=batch, carry=carry, params=params, means=means, first=first
        )
    return found


@pytest.mark.parametrize("placement", ["eight", "spread"])
def test_devices_do_not_change_the_numbers(runs, placement):
    one, other = runs["one"], runs[placement]
    close = lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-5)
    numbers = lambda run: (run.carry.train.params, run.carry.train.opt_state, run.carry.average, run.carry.window, run.means)
    jax.tree.map(close, jax.device_get(numbers(one)), jax.device_get(numbers(other)))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one.params[0], one.params[-1])
    assert all(change > 1e-3 for change in jax.tree.leaves(moved))


@pytest.mark.parametrize(
    ("saved", "wanted"), [("eight", "one"), ("one", "eight"), ("spread", "one"), ("one", "spread"), ("eight", "spread")]
)
def test_state_goes_on_with_other_devices(runs, tmp_path, saved, wanted):
    saved, wanted = runs[saved], runs[wanted]
    store = Checkpoints(tmp_path / "c", keep=1)
    store.save(STEPS, saved.carry, {})
    restored = store.restore(STEPS, wanted.program.template).state
    again = store.restore(STEPS, saved.program.template).state
    store.close()
    same_bits = lambda a, b: np.testing.assert_array_equal(numbers(a), numbers(b))
    numbers = lambda leaf: jax.device_get(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
    jax.tree.map(same_bits, restored, saved.carry)
    assert jax.tree.map(lambda x: x.sharding, restored.train) == jax.tree.map(lambda x: x.sharding, wanted.carry.train)
    for run, carry in ((saved, again), (wanted, restored)):
        with jax.set_mesh(run.mesh):
            run.next = run.program.step(carry, meshes.put_batch(run.mesh, run.batch))
    close = lambda a, b: np.testing.assert_allclose(numbers(a), numbers(b), rtol=1e-5, atol=1e-5)
    jax.tree.map(close, saved.next, wanted.next)


def test_state_is_placed_as_asked_and_stays_there(runs):
    kernel = lambda run: run.carry.train.params["stem"]["kernel"]
    trace = lambda run: next(x for x in jax.tree.leaves(run.carry.train.opt_state) if x.shape == kernel(run).shape)
    assert kernel(runs["one"]).sharding.device_set == {jax.devices()[0]}
    assert kernel(runs["eight"]).sharding.is_fully_replicated and len(kernel(runs["eight"]).sharding.device_set) == 8
    for leaf in (kernel(runs["spread"]), trace(runs["spread"]), jax.tree.leaves(runs["spread"].carry.average)[-1]):
        assert leaf.addressable_shards[0].data.size * 8 == leaf.size
    for run in runs.values():
        assert run.first == kernel(run).sharding  # a state that moves compiles its step anew


def test_bfloat16_in_parts_trains_float32_weights_to_about_the_same():
    """What is computed has 8 bits; what is kept and summed, 24: weights, optimiser, averages, losses."""
    data = types.SimpleNamespace(train=split(0, 64), num_classes=4, image_shape=(4, 4, 1))
    config = TrainConfig(
        recipe="l2",
        data=DataConfig(batch_size=16),
        model=ModelConfig("vit", width=8, depth=1, heads=2),
        learning_rate=0.02,
        ema_decay=0.8,
        log_every=4,
    )
    mesh, kept = meshes.data_mesh(2), {}
    for name, options in (
        ("plain", {}),
        ("mixed", {"bfloat16": True}),
        ("mixed in parts", {"bfloat16": True, "microbatches": 4}),
    ):
        with jax.set_mesh(mesh):
            program = make_program(dataclasses.replace(config, **options), data, mesh, 4, 8)
            carry = program.init(jax.random.key(0), data.train.labels)
            for i in range(8):
                examples = data.train.take(np.arange(16 * i, 16 * i + 16) % 64)
                batch = {key: examples[key] for key in ("image", "label", "index")}
                carry, _, means = program.step(carry, meshes.put_batch(mesh, batch))
        kept[name] = jax.device_get((carry.train.params, means))
        floats = [leaf.dtype for leaf in jax.tree.leaves((carry.train, carry.average, means)) if hasattr(leaf, "dtype")]
        assert {dtype for dtype in floats if jnp.issubdtype(dtype, jnp.floating)} == {jnp.dtype("float32")}
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    plain, mixed, parts = (flat(kept[name][0]) for name in kept)
    start = flat(jax.device_get(program.init(jax.random.key(0), data.train.labels).train.params))
    moved = np.linalg.norm(plain - start)
    assert 0 < np.linalg.norm(mixed - plain) < 0.05 * moved
    assert 0 < np.linalg.norm(parts - plain) < 0.05 * moved


def test_moving_average_is_the_debiased_one(runs):
    biased = jax.tree.map(np.zeros_like, runs["one"].params[0])
    for params in runs["one"].params[1:]:
        biased = jax.tree.map(lambda a, p: DECAY * a + (1 - DECAY) * p.astype(np.float64), biased, params)
    expected = jax.tree.map(lambda a: a / (1 - DECAY**STEPS), biased)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), runs["one"].carry.average[0], expected)


def test_metrics_are_means_since_the_last_line(runs):
    norms = [mean["grad_norm"] for mean in runs["one"].means]
    # Step 1 begins a window of three, step 4 the next.
    each = [norms[0], 2 * norms[1] - norms[0], 3 * norms[2] - 2 * norms[1], norms[3]]
    one = runs["one"].params
    velocity = jax.tree.map(np.zeros_like, one[0])
    for step in range(STEPS):
        moved = jax.tree.map(lambda a, b: (a - b) / RATE, one[step], one[step + 1])
        clipped = jax.tree.map(lambda m, v: m - 0.9 * v, moved, velocity)  # momentum
        np.testing.assert_allclose(optax.tree.norm(clipped), min(each[step], CLIP), rtol=1e-3)
        velocity = moved
    assert max(each) > CLIP


def test_state_spreads_along_the_largest_axis_that_divides():
    mesh = meshes.data_mesh(8)
    shapes = {"a": (8, 16), "b": (16, 16), "c": (24, 3), "d": (5, 7), "e": (), "f": (0,), "g": (3, 40, 8)}
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    specs = {name: sharding.spec for name, sharding in meshes.largest_axis_sharding(mesh, tree).items()}
    P = jax.P
    assert specs == {"a": P(None, "data"), "b": P("data"), "c": P("data"), "d": P(), "e": P(), "f": P(), "g": P(None, "data")}


def test_mesh_refuses_devices_that_are_not_there():
    with pytest.raises(ValueError, match="devices must be between 1 and the 8 that there are, got 9"):
        meshes.data_mesh(9)


# The guard.


def linear(params, state, images, *, key, hooks, training):
    return rj.Outputs(images @ params["kernel"] + params["bias"], images, state)


def guarded(recipe, params, batch, steps=1):
    train = rj.make_train_step(recipe, linear, num_classes=2)
    state, code = train.init(jax.random.key(0), params), guard.FINE
    step = jax.jit(lambda state, batch: (lambda new, metrics: (new, guard.verdict(metrics, new)))(*train.step(state, batch)))
    for _ in range(steps):
        new, code = step(state, batch)
        if code != guard.FINE:
            break
        state = new
    probe = jax.jit(guard.make_probe(recipe, linear, num_classes=2))
    return code, guard.culprit(int(code), new if code == guard.STATE else state, batch, probe)


GOOD = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
BATCH = {"image": jnp.ones((4, 3)), "label": jnp.array([0, 1, 0, 1])}


def test_guard_names_a_poisoned_batch():
    poisoned = {**BATCH, "image": BATCH["image"].at[2, 1].set(jnp.nan)}
    assert guarded(rj.Recipe(), GOOD, poisoned) == (guard.LOSS, "image of the batch")


def test_guard_names_logits_and_losses():
    code, what = guarded(rj.Recipe(), {**GOOD, "kernel": jnp.full((3, 2), 2e38)}, BATCH)
    assert code == guard.LOSS and what.startswith("the logits (loss nan")
    code, what = guarded(rj.Recipe(loss=lambda logits, labels: jnp.log(logits[:, 0] - 3)), GOOD, BATCH)
    assert code == guard.LOSS and what.startswith("the task loss (loss -inf")
    code, what = guarded(rj.Recipe(penalties=((1.0, lambda params: jnp.log(params["bias"][0])),)), GOOD, BATCH)
    assert code == guard.LOSS and what.startswith("the penalty (loss -inf")


def test_guard_names_the_gradient_of_one_parameter():
    root = lambda params: jnp.sqrt(jnp.sum(params["bias"] ** 2))
    code, what = guarded(rj.Recipe(penalties=((1.0, root),)), GOOD, BATCH)
    assert code == guard.GRADIENT and what == "the gradient of bias (loss 0.6931, grad norm nan)"


def test_guard_names_a_norm_that_overflows():
    code, what = guarded(rj.Recipe(penalties=((1.0, lambda params: 1e30 * params["bias"][0]),)), GOOD, BATCH)
    assert code == guard.GRADIENT and what.startswith("the norm of the gradient, whose entries are finite, (loss 0.69")


def test_guard_names_the_parameter_that_an_update_breaks():
    code, what = guarded(rj.Recipe(optimizer=optax.sgd(3e38)), GOOD, {"image": 100 * BATCH["image"], "label": jnp.zeros(4, int)})
    assert code == guard.STATE and what == "parameters.kernel after the update"


def test_guard_is_silent_about_finite_steps_and_reads_with_a_lag():
    assert guarded(rj.Recipe(), GOOD, BATCH, steps=3)[0] == guard.FINE
    watch = guard.Watch(lag=2)
    assert [watch.add(jnp.int32(code)) for code in (0, 0, 1, 0)] == [False] * 4
    assert watch.add(jnp.int32(0))
    watch = guard.Watch(lag=2)
    assert not watch.add(jnp.int32(3)) and watch.all_read()


# Checkpoints and the folder.


def state_on(mesh, spread=True):
    tree = {"kernel": jnp.arange(32.0).reshape(4, 8), "key": jax.random.key(7), "step": jnp.int32(5), "none": jnp.zeros((0, 3))}
    shardings = meshes.largest_axis_sharding(mesh, tree) if spread else jax.tree.map(lambda _: meshes.replicated(mesh), tree)
    return jax.tree.map(jax.device_put, tree, shardings)


def template(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def test_checkpoint_returns_the_same_bits_on_another_mesh(tmp_path):
    saved, wanted = state_on(meshes.data_mesh(8)), state_on(meshes.data_mesh(2), spread=False)
    store = Checkpoints(tmp_path / "c", keep=2)
    assert store.latest() is None
    for step in (1, 2, 3):
        store.save(step, saved, {"data": {"next_index": step}})
    store.wait()
    assert store.latest() == 3 and sorted(path.name for path in (tmp_path / "c").iterdir()) == ["2", "3"]
    state, extra = store.restore(2, template(wanted))
    store.close()
    assert extra == {"data": {"next_index": 2}}
    same = lambda a, b: a.dtype == b.dtype and a.sharding == b.sharding and bool(jnp.all(a == b))
    assert jax.tree.all(jax.tree.map(same, state, wanted))


def test_old_version_and_other_states_are_refused(tmp_path, monkeypatch):
    state = state_on(meshes.data_mesh(1))
    store = Checkpoints(tmp_path / "c", keep=3)
    with monkeypatch.context() as patch:
        patch.setattr(saving, "STATE_VERSION", 0)
        store.save(1, state, {})
    store.save(2, state, {})
    store.wait()
    with pytest.raises(ValueError, match=r"1 has state version 0, of regjax .*this code reads version 1: finish the run with"):
        store.restore(1, template(state))
    other = {**state, "kernel": jnp.zeros((4, 9)), "bias": jnp.zeros(9)}
    with pytest.raises(
        ValueError, match=r"bias: nothing there, float32\[9\] wanted; kernel: float32\[4,8\] there, float32\[4,9\] wanted"
    ):
        store.restore(2, template(other))
    next((tmp_path / "c" / "2" / "about").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"2 cannot be read .*delete that folder to go on from the checkpoint before it"):
        store.restore(2, template(state))
    store.close()


def test_folder_belongs_to_one_configuration_and_one_process(tmp_path):
    config = {"rate": 0.1, "data": {"name": "digits"}, "out": "a"}
    claim = lambda config: claimed(tmp_path / "r", config, ["out"])
    with claim(config), pytest.raises(ValueError, match="another process is at work there"), claim(config):
        pass
    with claim({**config, "out": "b"}):
        pass
    assert json.loads((tmp_path / "r" / "config.json").read_text())["out"] == "a"
    # An option that came later stands there for what was done before it.
    later = {**config, "data": {"name": "digits", "parts": 1}}
    with claimed(tmp_path / "r", later, ["out"], {"data.parts": 1}):
        pass
    with pytest.raises(ValueError, match=r"data.parts: 1 there, 2 now"):
        later["data"]["parts"] = 2
        claimed(tmp_path / "r", later, ["out"], {"data.parts": 1}).__enter__()
    changed = {"rate": 0.2, "data": {"name": "digits", "seed": 1}, "out": "a"}
    expected = r"data\.seed: nothing there, 1 now; rate: 0\.1 there, 0\.2 now"
    with pytest.raises(ValueError, match=expected), claim(changed):
        pass


# What is written.


def test_metrics_file_keeps_what_a_checkpoint_knows_of(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.write(1, "train", {"loss": 0.5})
    size = file.sync()
    file.write(2, "train", {"loss": math.nan, "other": -math.inf})
    assert json.loads(path.read_text().splitlines()[1]) == {"step": 2, "split": "train", "loss": "NaN", "other": "-Infinity"}
    file.close()
    file = MetricsFile(path, size)
    file.write(2, "train", {"loss": 0.25})
    file.close()
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [0.5, 0.25]
    with pytest.raises(ValueError, match=r"has 2 bytes, but the checkpoint to resume from was saved with 99: lines are lost"):
        path.write_text("{}")
        MetricsFile(path, 99)


@pytest.mark.parametrize("installed", [True, False])
def test_writer_needs_no_tensorboard(tmp_path, monkeypatch, capsys, installed):
    if installed:
        pytest.importorskip("tensorboardX")
    else:
        monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    writer = Writer(tmp_path, start=0, total=3, size=0, active=True, tensorboard=True, progress=True)
    writer.advance()
    writer.write(1, "train", {"loss": 0.5})
    assert writer.sync() == (tmp_path / "metrics.jsonl").stat().st_size > 0
    writer.close()
    assert bool(list(tmp_path.glob("tensorboard/*tfevents*"))) == installed
    assert capsys.readouterr().err == ""  # no terminal, no bar


def test_other_processes_write_nothing(tmp_path):
    writer = Writer(tmp_path, start=0, total=3, size=0, active=False, tensorboard=True, progress=True)
    writer.write(1, "train", {"loss": 0.5})
    assert writer.sync() == 0
    writer.close()
    assert not list(tmp_path.iterdir())


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "final.json"
    write_json(path, {"a": (1, math.inf), "path": tmp_path})
    before = path.read_text()
    assert json.loads(before) == {"a": [1, "Infinity"], "path": str(tmp_path)}
    with pytest.raises(TypeError):
        write_json(path, {"b": 1, "a": object()})
    assert path.read_text() == before


# The measures.


def test_measures_of_padded_batches_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    examples = split(1, 21)
    kernel = rng.normal(size=(16, 4)).astype(np.float32)
    logits = examples.images.reshape(21, -1) @ kernel
    score_batch = jax.jit(lambda b: score(b["image"].reshape(len(b["image"]), -1) @ kernel, b["clean_label"], b["where"]))
    found = evaluate(score_batch, evaluation_batches(examples, batch_size=8))
    assert list(found) == ["accuracy", "nll", "ece", "aurc"]

    z = logits.astype(np.float64)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    confidence, correct = p.max(1), p.argmax(1) == examples.labels
    order = np.argsort(-confidence, kind="stable")
    risks = np.concatenate([[0], np.cumsum(~correct[order]) / np.arange(1, 22)])
    bins = np.ceil(confidence * 15).astype(int)
    expected = {
        "accuracy": correct.mean(),
        "nll": -np.log(p[np.arange(21), examples.labels]).mean(),
        "ece": sum(abs(confidence[bins == b].sum() - correct[bins == b].sum()) for b in range(1, 16)) / 21,
        "aurc": np.mean((risks[:-1] + risks[1:]) / 2),
    }
    assert 0 < expected["accuracy"] < 1
    np.testing.assert_allclose([found[name] for name in expected], list(expected.values()), rtol=1e-5)
    whole = jax.jit(measure)(jnp.asarray(logits), examples.labels)
    np.testing.assert_allclose([whole[name] for name in expected], list(expected.values()), rtol=1e-5)


def test_measures_ignore_examples_that_do_not_count():
    logits, labels = jnp.array([[2.0, 0.0], [0.0, 1.0], [jnp.nan, 0.0]]), jnp.array([0, 0, 1])
    some, fewer = jax.jit(measure)(logits, labels, jnp.array([True, True, False])), jax.jit(measure)(logits[:2], labels[:2])
    np.testing.assert_allclose(list(some.values()), list(fewer.values()), rtol=1e-6)
    assert evaluate(lambda batch: Scores(*batch), []) == {}
    assert score(logits.astype(jnp.bfloat16), labels).nll.dtype == jnp.float32
