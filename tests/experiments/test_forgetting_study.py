"""The study of forgetting at a tiny setting, and what it is built of."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import regjax as rj
from experiments import readme
from experiments.studies import common, forgetting, forgetting_tuning
from experiments.studies import forgetting_training as training

pytestmark = pytest.mark.slow

TINY = forgetting.ForgettingConfig(
    seeds=2, width=8, depth=2, heads=2, retain_batch=12, forget_batch=6, fit_steps=6, steps=6, points=2, rank=2, alphas=(0.5,)
)


@pytest.fixture(scope="module")
def bench():
    return forgetting.Bench(TINY, range(2))


def test_tasks_and_batches_hold_the_right_classes(bench):
    tasks, classes = bench.tasks, bench.data.classes
    for seed, (first, second) in enumerate(classes):
        assert first != second
        sets = {name: tuple(set(np.flatnonzero(mask[seed]).tolist()) for mask in split) for name, split in tasks.items()}
        every = set(range(10))
        assert sets["both"] == ({first, second}, every - {first, second})
        assert sets["first"] == ({first}, every - {first}) and sets["second"] == ({second}, every - {first, second})
        draw = training.Drawer(
            jax.tree.map(lambda x, s=seed: jnp.asarray(x[s]), bench.data.train), jnp.asarray(tasks["both"].forget[seed])
        )
        assert set(np.unique(draw(jax.random.key(0), 200).labels).tolist()) == {first, second}
        assert int(draw.count) == np.isin(bench.data.train.labels[seed], classes[seed]).sum()


def test_the_loss_is_that_of_the_publication(bench):
    programs, data = bench.programs, jax.tree.map(lambda x: jnp.asarray(x[0]), bench.data)
    split = jax.tree.map(lambda x: jnp.asarray(x[0]), bench.tasks["both"])
    params, prototypes = (jax.tree.map(lambda x: x[0], tree) for tree in (bench.before.outcome.params, bench.prototypes))
    adapted = rj.layers.adapt(
        programs.network(params), lambda layer, rngs: rj.layers.LoRALinear(layer, rank=2, rngs=rngs),
        where=lambda path, layer: path.endswith(("up", "down")), rngs=nnx.Rngs(5),
    )  # fmt: skip
    graph, adapters, rest = nnx.split(adapted, rj.layers.AdapterParam, ...)
    adapters = jax.tree.map(lambda x: x + 0.1, adapters)
    network, key = lambda a: nnx.merge(graph, a, rest), jax.random.key(3)
    strengths = training.Strengths(0.1, beta=0.2, alpha=0.3, warm_up=0.5, away=0.4, near=0.6)
    loss = jax.jit(programs._loss("lora", network, prototypes, data, split, strengths))
    keys = jax.random.split(key)
    keep = training.Drawer(data.train, split.retain)(keys[0], TINY.retain_batch)
    lose = training.Drawer(data.train, split.forget)(keys[1], TINY.forget_batch)

    infer = jax.jit(lambda images: network(adapters)(images))

    def parts(batch):
        logits, features = (np.asarray(x, np.float64) for x in infer(batch.images))
        labels = np.asarray(batch.labels)
        log_softmax = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))
        own = log_softmax(np.asarray(prototypes, np.float64)[labels])
        distance = np.mean(np.sum(np.exp(own) * (own - log_softmax(features)), -1))
        return -np.mean(log_softmax(logits)[np.arange(len(labels)), labels]), distance

    (ce, near), (ce_lost, away) = parts(keep), parts(lose)
    plain = ce + 0.2 * max(0, 10 - ce_lost) + 0.4 * max(0, 5 - away) + 0.6 * near
    norms = [np.sqrt(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(adapters["blocks"][i]))) for i in range(2)]
    # Six steps: the warm-up is of the steps 0, 1 and 2.
    got = [float(loss(adapters, key, step)) for step in (2, 3)]
    np.testing.assert_allclose(got, [plain, plain + 0.3 * sum(norms)], rtol=1e-4)
    _, shown = jax.jit(lambda a: programs._point(a, data, network))(adapters)
    np.testing.assert_allclose(shown, norms, rtol=1e-5)
    # Of the other kinds: upwards on the forgotten, and on the kept with an l1 penalty that is 0 in the end.
    strengths = training.Strengths(0.1, l1=1e-2)
    of = lambda kind: programs._loss(kind, programs.network, prototypes, data, split, strengths)

    @jax.jit
    def others(params):
        cross = lambda batch: training.cross_entropy(programs.network(params)(batch.images)[0], batch.labels)
        lost, kept = (
            training.Drawer(data.train, chosen)(key, size)
            for chosen, size in ((split.forget, TINY.forget_batch), (split.retain, TINY.retain_batch))
        )
        size = sum(jnp.abs(x).sum() for x in jax.tree.leaves(params))
        kept_losses = jax.vmap(lambda step: of("retained")(params, key, step))(jnp.array([0, 5, 10]))
        return of("ascent")(params, key, 0), cross(lost), kept_losses, cross(kept), size

    raised, lost, lowered, kept, size = (np.asarray(x, np.float64) for x in others(params))
    assert raised == pytest.approx(-lost, rel=1e-5)
    np.testing.assert_allclose(lowered, kept + np.array([1e-2, 5e-3, 0]) * size, rtol=1e-4)


def test_adapters_change_the_feed_forward_kernels_alone_and_merge_exactly(bench):
    run = bench.run("lora", {"learning_rate": 0.02, "beta": 1.0}, "both").outcome
    before, after = (nnx.to_pure_dict(params) for params in (bench.before.outcome.params, run.params))
    changes = []
    for (path, old), new in zip(jax.tree_util.tree_flatten_with_path(before)[0], jax.tree.leaves(after), strict=True):
        names = [str(getattr(part, "key", part)) for part in path]
        if names[-1] == "kernel" and names[-2] in ("up", "down"):
            changes.append(np.asarray(jnp.sum((new - old) ** 2, axis=(1, 2))))
        else:
            np.testing.assert_array_equal(old, new)
    down_up = np.array(changes).reshape(TINY.depth, 2, -1).sum(1).T
    np.testing.assert_allclose(run.change, np.sqrt(down_up), rtol=1e-4)
    assert (run.change > 1e-3).all() and (run.merge_gap < 1e-5).all() and run.norms.shape == (2, 3, 2)
    # The curve ends where the judged logits are.
    hits = run.logits.argmax(-1) == bench.data.judged.labels
    ends = [[hits[s][bench.data.judged.labels[s] == k].mean() for k in bench.data.classes[s]] for s in range(2)]
    np.testing.assert_allclose(run.curve[:, -1, :2], ends, atol=1e-6)
    np.testing.assert_allclose(run.curve[:, 0], bench.before.outcome.curve[:, -1], atol=1e-6)


def test_a_group_lasso_from_the_start_shrinks_every_group(bench):
    base = {"learning_rate": 0.05, "beta": 0.1, "alpha": 1.0}
    late, early = (bench.run("lora", {**base, "warm_up": share}, "both").outcome.norms for share in (1.0, 0.0))
    np.testing.assert_allclose(late[:, 0], early[:, 0])
    assert (early[:, -1] < early[:, 0]).all() and (early[:, -1] < late[:, -1]).all()


def test_measures_are_those_of_their_definitions():
    rng, labels = np.random.default_rng(0), np.arange(20)[None] % 10
    bench = SimpleNamespace(data=SimpleNamespace(judged=training.Part(None, labels), classes=np.array([[2, 7]])))
    outcome = lambda answers, norms, change: training.Outcome(
        None, np.array([[[0.0] * 3, [0.25, 0.75, 1.0]]]), np.array([[norms]]), np.array([change]), 0.0, None,
        np.eye(10)[answers] + 0.1 * rng.random((1, 20, 10)),
    )  # fmt: skip
    bench.before = SimpleNamespace(outcome=outcome(labels, [1.0, 1.0], [0.0, 0.0]))
    answers = labels.copy()
    answers[0, [2, 7, 12, 0]] = 5  # three of four to forget, and one of sixteen others
    got = forgetting.measure(outcome(answers, [4.0, 0.3, 0.005], [0.5, 0.04, 2.0]), bench)
    wanted = {
        "forgotten": 0.25,
        "first": 0.25,
        "second": 0.75,
        "retained": 15 / 16,
        "quiet": 1 / 3,
        "small": 2 / 3,
        "zero": 1 / 3,
    }
    wanted |= {"h": 2 * 0.75 * 15 / 16 / (0.75 + 15 / 16), "norm": 4.0}
    assert {name: x[0] for name, x in got.items()} == pytest.approx(wanted)


def test_the_gap_is_the_mean_of_four(bench):
    same = forgetting.against_retraining(bench.before, bench, bench.before)
    np.testing.assert_array_equal(same["gap"], 0)
    other = bench.before._replace(outcome=bench.before.outcome._replace(logits=-bench.before.outcome.logits))
    got = forgetting.against_retraining(other, bench, bench.before)
    np.testing.assert_allclose(got["ua"], same["ua"])
    gaps = [np.abs(got[name] - same[name]) for name in ("ua", "ra", "ta", "mia")]
    np.testing.assert_allclose(got["gap"], np.mean(gaps, axis=0))
    labels, classes = bench.data.judged.labels, bench.data.classes
    kept = [~np.isin(labels[s], classes[s]) for s in range(2)]
    hits = np.argmin(bench.before.outcome.logits, -1) == labels
    np.testing.assert_allclose(got["ta"], [hits[s][kept[s]].mean() for s in range(2)], rtol=1e-6)


def test_a_constant_difference_is_decided_by_its_sign():
    zero = common.statistic([0.0, 0.0, 0.0], [0.1, 0.1, 0.1])
    assert common.verdict(zero, -1) == "not shown"
    assert forgetting.said(zero, -1) == "held" and forgetting.said(zero, 1) == "the opposite"
    assert forgetting.said(common.statistic([0.1, 0.1], [0.1, 0.1]), 1) == "not shown"
    assert forgetting.said(common.statistic([0.1, 0.5, 0.2], [0.2, 0.3, 0.2]), 1) == "not shown"


def test_the_study_writes_its_folder_and_overwrites_none(tmp_path, monkeypatch, bench, capsys):
    # One compiled program serves for all methods: of the others only the shapes are tried, below.
    monkeypatch.setattr(forgetting, "Bench", lambda config, seeds: bench)
    run = forgetting.Bench(None, None).run
    monkeypatch.setattr(bench, "run", lambda kind, *rest: run("lora", *rest), raising=False)
    config = dataclasses.replace(TINY, out=tmp_path / "out")
    text = forgetting.study(config, quiet=True)
    pictures = {f"{name}.{kind}" for name in ("accuracy", "groups") for kind in ("png", "svg")}
    words = ("accuracy", "unlearning", "turns", "warm", "claims")
    assert {path.name for path in config.out.iterdir()} == {*pictures, "README.md", "results.json", *(f"{w}.txt" for w in words)}
    held = json.loads((config.out / "results.json").read_text())
    assert list(held["both"]) == ["before", "retraining", *forgetting.METHODS] and list(held["turns"]) == list(forgetting.METHODS)
    assert held["both"]["retraining"]["gap"] == [0, 0] and held["both"]["before"]["h"] == [0, 0]
    assert held["parameters"]["LoRA"] == 2 * 2 * 2 * (8 + 32)
    assert held["parameters"]["full fine-tuning"] == sum(
        int(np.prod(x.shape)) for x in jax.tree.leaves(bench.programs._split(0)[1])
    )
    assert [(row["alpha"], row["warm_up"]) for row in held["sweep"]] == [(0.5, forgetting.WARM_UP), (0.5, 0.0)]
    assert "the merged network is the adapted one" in text and (config.out / "groups.png").stat().st_size > 10_000
    assert forgetting.main(["--out", str(config.out)]) == 2 and "--force" in capsys.readouterr().err


def test_every_kind_ends_alike(bench):
    one = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree)
    arguments = [one(x) for x in (bench.before.outcome.params, bench.prototypes, bench.data, bench.tasks["both"], bench.keys)]
    shapes = jax.tree.map(lambda x: x.shape[1:], bench.before.outcome)
    for kind in ("full", "retained"):
        run = lambda *rest, kind=kind: bench.programs._forget(kind, *rest, training.Strengths(0.1))
        assert jax.tree.map(jnp.shape, jax.eval_shape(run, *arguments)) == shapes, kind


def test_impossible_settings_are_refused():
    for wrong in ({"seeds": 0}, {"steps": 7}, {"fit_steps": 3}, {"judged_on": "train"}, {"alphas": (0.0,)}):
        with pytest.raises(ValueError, match=f"ForgettingConfig: {next(iter(wrong))}"):
            forgetting.ForgettingConfig(**wrong)


def test_strengths_are_the_best_points_tried():
    tried = json.loads((readme.ROOT / forgetting_tuning.OUT).read_text())
    assert list(tried) == list(forgetting_tuning.GRIDS)
    for name, points in tried.items():
        assert len(points) == 6
        assert forgetting_tuning.best(name, points) == forgetting.METHODS[name].hyperparameters, name
    early = forgetting.METHODS["GS-LoRA, no warm-up"].hyperparameters
    assert early == {**forgetting.METHODS["GS-LoRA"].hyperparameters, "warm_up": 0.0}
    points = {json.dumps({"alpha": alpha}): {"score": [score, score]} for alpha, score in ((0.1, 0.9), (0.2, 0.895), (0.3, 0.8))}
    assert forgetting_tuning.best("GS-LoRA", points) == {"alpha": 0.2} and forgetting_tuning.best("LoRA", points) == {
        "alpha": 0.1
    }
