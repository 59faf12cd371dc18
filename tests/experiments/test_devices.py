"""Whole training steps on eight devices equal those on one, and move no more between devices than they must."""

import functools
import json
from functools import partial

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import regjax as rj
from experiments import meshes
from experiments.bench import devices
from experiments.bench.devices import collectives
from experiments.models import ModelConfig, make_model, split
from regjax.core import trees

K, N, B, STEPS, RATE = 4, 64, 32, 20, 0.005
SHAPE = (8, 8, 3)
MODELS = {
    "resnet": ModelConfig("resnet", width=8, depth=1),
    "vit": ModelConfig("vit", width=8, depth=2, patch=4, heads=2),
    "mlp": ModelConfig("mlp", width=16, depth=2),
}
FALLS, RISES = optax.linear_schedule(0.2, 0.0, STEPS), optax.linear_schedule(0.0, 1e-2, STEPS)
CUTMIX, MIXUP = partial(rj.inputs.cutmix, alpha=1.0), partial(rj.inputs.mixup, alpha=1.0, per="example")


def batches():
    """Twenty batches, the examples of each two in another order."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, K, N).astype(np.int32)
    images = rng.normal(size=(N, *SHAPE)).astype(np.float32) + labels[:, None, None, None]
    order = rng.permuted(np.tile(np.arange(N, dtype=np.int32), (STEPS * B // N, 1)), axis=1).reshape(STEPS, B)
    return labels, {"image": images[order], "label": labels[order], "index": order}


LABELS, BATCHES = batches()
GROUPS = jax.tree.map(lambda x: x.reshape(STEPS, 8, B // 8, *x.shape[2:]), BATCHES)


def everything(model, dim, *, axis_name=None, blocks=8):
    """Two recipes with a technique at every stage; ``axis_name`` for what looks at the batch as a whole."""
    common = {
        "features": ((1.0, rj.features.neural_collapse(K, dim, axis_name=axis_name)),),
        "optimizer": optax.sgd(RATE, momentum=0.9),
        "feature_optimizer": optax.sgd(0.05),
    }
    sam = partial(rj.objectives.sam, axis_name=axis_name)
    if model == "vit":
        return rj.Recipe(
            **common,
            inputs=(partial(MIXUP, within_shard=blocks),),
            layers=rj.Hooks(dropout=FALLS, drop_path=0.2, noise=partial(rj.layers.gaussian_noise, std=0.05)),
            loss=partial(rj.losses.label_smoothing, alpha=0.1),
            penalties=((1e-3, rj.weights.group_lasso),),
            objectives=(partial(sam, rho=0.5, adaptive="asam"),),
            gradients=(rj.gradients.centralize_gradient(),),
            weights=(rj.gradients.decoupled_weight_decay(1e-3),),
        )
    return rj.Recipe(
        **common,
        inputs=(partial(CUTMIX, within_shard=blocks),),
        layers=rj.Hooks(dropout=0.1, drop_path=FALLS),
        loss=rj.losses.elr(N, K),
        penalties=((RISES, rj.weights.l2),),
        objectives=(partial(sam, rho=0.05),),
        gradients=(rj.gradients.orthogonal_gradient(),),
        weights=(rj.gradients.proximal_step(rj.weights.prox_group_lasso, 1e-2, learning_rate=RATE),),
    )


@functools.cache
def start(model):
    """The model as a function, and its first parameters: no leaf 0, where it would stay its own rounding error."""
    apply_fn, params, model_state = split(make_model(MODELS[model], SHAPE, K, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    given = lambda x: x.ndim > 1 and np.any(np.asarray(x))
    moved = jax.tree.map(lambda x: x if given(x) else x + (0.1 * rng.normal(size=x.shape)).astype(np.float32), params)
    return apply_fn, moved, model_state


def prepare(model, axis_name=None, **options):
    """The step of a recipe and its first state."""
    apply_fn, params, model_state = start(model)
    recipe = everything(model, params["head"]["kernel"].shape[0], axis_name=axis_name, **options)
    train = rj.make_train_step(recipe, apply_fn, num_classes=K, axis_name=axis_name)
    return train.step, train.init(jax.random.key(0), params, model_state, labels=LABELS)


def scan(step):
    return lambda state, batches: jax.lax.scan(step, state, batches)


def numbers(state):
    """All that a run has learned."""
    kept = {name: getattr(state, name) for name in ("params", "learned", "model_state", "memory")}
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(kept)}


def assert_same(got, want):
    """Equal up to 1e-5 of the largest entry of each leaf."""
    got, want = numbers(got), numbers(want)
    assert got.keys() == want.keys()
    apart = {name: np.abs(got[name] - leaf).max() / max(np.abs(leaf).max(), 1e-30) for name, leaf in want.items() if leaf.size}
    worst = max(apart, key=apart.get)
    assert apart[worst] <= 1e-5, f"{worst} differs by {apart[worst]:.1e} of its largest entry"


@functools.cache
def on_one_device(model):
    step, state = prepare(model)
    return jax.jit(scan(step))(state, BATCHES)


LAYOUTS = [devices.Layout(kind, spread) for kind in ("auto", "explicit") for spread in (False, True)]
QUICK = {("vit", LAYOUTS[1])}
ON_MESHES = [
    pytest.param(
        *case,
        id=f"{case[0]}-{case[1].axis_type}-{'spread' if case[1].spread else 'copied'}",
        marks=() if case in QUICK else pytest.mark.slow,
    )
    for case in ((model, layout) for model in ("resnet", "vit") for layout in LAYOUTS)
]


@pytest.mark.parametrize(("model", "layout"), ON_MESHES)
def test_twenty_steps_with_a_technique_of_every_stage_equal_one_device(model, layout):
    want, metrics = on_one_device(model)
    step, state = prepare(model)
    mesh = meshes.data_mesh(8, layout.axis_type)
    where = devices.place(state, mesh, layout.spread)
    with jax.set_mesh(mesh):
        rows = jax.NamedSharding(mesh, jax.P(None, meshes.AXIS))
        state = jax.tree.map(jax.device_put, state, where)
        got, seen = jax.jit(scan(step), out_shardings=(where, None))(state, jax.device_put(BATCHES, rows))
    assert_same(got, want)
    np.testing.assert_allclose(seen["grad_norm"], metrics["grad_norm"], rtol=1e-4)
    spread = [leaf for leaf in jax.tree.leaves((got.params, got.opt_state)) if leaf.addressable_shards[0].data.size < leaf.size]
    assert bool(spread) == layout.spread
    first, last = numbers(state), numbers(got)
    still = {name for name, leaf in first.items() if "params" in name and np.abs(leaf - last[name]).max() < 1e-5}
    assert all("['key']['bias']" in name for name in still)  # a softmax over positions does not see this one


@functools.cache
def as_eight_groups(model):
    """The same program as on eight devices, on one: each group draws and normalises for itself."""
    step, state = prepare(model, meshes.AXIS, blocks=None)
    return jax.jit(scan(jax.vmap(step, in_axes=(None, 0), out_axes=None, axis_name=meshes.AXIS)))(state, GROUPS)[0]


MAPPED = [
    pytest.param("vit", "shard_map", id="vit-shard_map", marks=pytest.mark.slow),
    pytest.param("vit", "pmap", id="vit-pmap", marks=pytest.mark.slow),
    pytest.param("vit", "unchecked", id="vit-unchecked", marks=pytest.mark.slow),
    pytest.param("resnet", "pmap", id="resnet-pmap", marks=pytest.mark.slow),
    pytest.param("resnet", "unchecked", id="resnet-unchecked", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("model", "style"), MAPPED)
def test_twenty_steps_mapped_over_devices_equal_groups_on_one(model, style):
    step, state = prepare(model, meshes.AXIS, blocks=None)
    if style == "pmap":
        got, _ = jax.pmap(scan(step), axis_name=meshes.AXIS, in_axes=(None, 1), out_axes=None)(state, GROUPS)
    else:
        got, _ = over_shards(scan(step), state, BATCHES, style == "shard_map")
    assert_same(got, as_eight_groups(model))


def over_shards(step, state, batches, check):
    mesh = meshes.data_mesh(8)
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(jax.P(), jax.P(None, meshes.AXIS)), out_specs=jax.P(), check_vma=check)
    return jax.jit(mapped)(state, batches)


def run_mlp(check=None, *, groups=1, axis_name=None):
    """Twenty steps without draws, on one device, or over shards that ``check``; SAM over groups or over a named axis."""
    apply_fn, params, model_state = start("mlp")
    mapped = None if check is None else meshes.AXIS
    whole = groups == 1 and axis_name == mapped
    recipe = rj.Recipe(
        features=((1.0, rj.features.neural_collapse(K, 16, axis_name=mapped)),) if whole else (),
        loss=rj.losses.elr(N, K) if whole else partial(rj.losses.label_smoothing, alpha=0.1),
        penalties=((1e-2, rj.weights.l2),),
        objectives=(partial(rj.objectives.sam, rho=0.1, num_groups=groups, axis_name=axis_name),),
        gradients=(rj.gradients.orthogonal_gradient(),),
        optimizer=optax.sgd(0.02, momentum=0.9),
        weights=(rj.gradients.decoupled_weight_decay(1e-3),),
    )
    train = rj.make_train_step(recipe, apply_fn, num_classes=K, axis_name=mapped)
    state = train.init(jax.random.key(0), params, model_state, labels=LABELS)
    if mapped is None:
        return jax.jit(scan(train.step))(state, BATCHES)[0]
    return over_shards(scan(train.step), state, BATCHES, check)[0]


@pytest.mark.parametrize("check", [True, False])
def test_shards_that_draw_nothing_equal_the_whole_batch(check):
    assert_same(run_mlp(check, axis_name=meshes.AXIS), run_mlp())


@pytest.mark.parametrize("check", [True, False])
def test_sam_of_each_device_alone_is_that_of_groups(check):
    assert_same(run_mlp(check), run_mlp(groups=8))


# What the compiled programs move.


def mixed(blocks):
    """Every technique that mixes examples with partners, within blocks."""

    def mix(key, images, labels):
        lam, _, partner = rj.inputs.manifold_mixup_weights(key, len(images), within_shard=blocks)
        within = {"within_shard": blocks}
        return (
            [MIXUP(key, images, labels, pairing=pairing, **within) for pairing in ("permutation", "roll")],
            [CUTMIX(key, images, labels, per="example", **within), CUTMIX(key, images, labels, pairing="reverse", **within)],
            rj.inputs.batch_mix(key, images, labels, cutmix_alpha=1.0, num_classes=K, mode="elem", **within),
            rj.inputs.random_mask_refill(key, images, labels, grid=2, **within),
            rj.inputs.cam_mask_refill(key, images, labels, cam=images[:, ::4, ::4, 0], fill="multi", **within),
            rj.layers.mix_features(images, lam=lam[0], partner=partner),
        )

    return mix


@pytest.mark.parametrize("style", ["auto", "explicit", "shard_map"])
def test_mixing_within_shards_moves_nothing(style):
    images, labels = np.ones((B, *SHAPE), np.float32), np.eye(K, dtype=np.float32)[np.arange(B) % K]
    mesh = meshes.data_mesh(8, "explicit" if style == "explicit" else "auto")
    key = jax.random.key(0)
    with jax.set_mesh(mesh):
        rows = jax.device_put((images, labels), meshes.batch_sharding(mesh))
        if style == "shard_map":
            own = lambda key, *batch: mixed(None)(jax.random.fold_in(key, jax.lax.axis_index(meshes.AXIS)), *batch)
            here = jax.shard_map(own, in_specs=(jax.P(), *(jax.P(meshes.AXIS),) * 2), out_specs=jax.P(meshes.AXIS))
            assert collectives(jax.jit(here).lower(key, *rows).compile()) == []
            return
        assert collectives(jax.jit(mixed(8)).lower(key, *rows).compile()) == []
        assert collectives(jax.jit(mixed(None)).lower(key, *rows).compile()) != []


SQUARE, ROWS = (16, 16), (24, 16)
LEAVES = 4


def loss_fn(params, x, y):
    """A network whose every kernel is spread."""
    for kernel in meshes.gathered(params):
        x = jax.nn.tanh(x @ kernel)
    return optax.softmax_cross_entropy(x, y).mean()


def gradient_program(fn, axis_type, spread):
    """The gradient of a loss of spread or copied parameters, placed as they are, of a batch that is sharded."""
    mesh = meshes.data_mesh(8, axis_type)
    params = [np.full(SQUARE, 0.1, np.float32)] * LEAVES
    batch = (np.ones((B, 16), np.float32), np.eye(16, dtype=np.float32)[np.arange(B) % 16])
    with jax.set_mesh(mesh):
        where = meshes.largest_axis_sharding(mesh, params) if spread else [meshes.replicated(mesh)] * LEAVES
        placed = (jax.device_put(params, where), *jax.device_put(batch, meshes.batch_sharding(mesh)))
        return collectives(jax.jit(jax.grad(fn), out_shardings=where).lower(*placed).compile())


SAM = partial(rj.objectives.sam, rho=0.05)


@pytest.mark.parametrize("axis_type", ["auto", "explicit"])
def test_sam_adds_one_gradient_and_of_spread_parameters_one_norm(axis_type):
    plain, sam = (gradient_program(fn, axis_type, False) for fn in (loss_fn, SAM(loss_fn)))
    assert [c.kind for c in plain] == ["all-reduce"] and len(plain[0].arrays) == LEAVES
    assert sam == 2 * plain

    plain, sam = (gradient_program(fn, axis_type, True) for fn in (loss_fn, SAM(loss_fn)))
    gathers = lambda found: [c for c in found if c.kind == "all-gather"]
    sums = lambda found: [c for c in found if c.kind == "all-reduce"]
    assert sorted(gathers(sam)) == sorted(2 * gathers(plain)) and len(gathers(plain)) == LEAVES
    assert len(plain) == len(gathers(plain)) + len(sums(plain)) and len(sam) == len(gathers(sam)) + len(sums(sam))
    alone = [c for c in sums(sam) if c.scalars]
    assert len(sums(plain)) == 1 and len(alone) == 1
    extra = sum(c.bytes for c in sums(sam)) - 2 * plain[-1].bytes
    if axis_type == "explicit":
        assert len(sums(sam)) == 3 and alone[0].arrays == (("f32", ()),) and extra == 4
    else:  # the partitioner reduces a number for each leaf; all but the last travel with another leaf's gradient
        assert extra == 4 * LEAVES


def test_sam_in_shard_map_adds_one_mean_gradient_if_its_axis_is_named_and_else_nothing():
    params = [np.full(SQUARE, 0.1, np.float32)] * LEAVES
    batch = (np.ones((B, 16), np.float32), np.eye(16, dtype=np.float32)[np.arange(B) % 16])
    specs = {"mesh": meshes.data_mesh(8), "in_specs": (jax.P(), *(jax.P(meshes.AXIS),) * 2), "out_specs": jax.P()}

    def program(fn):
        return collectives(jax.jit(jax.shard_map(jax.grad(fn), **specs)).lower(params, *batch).compile())

    plain = program(loss_fn)
    assert [c.kind for c in plain] == ["all-reduce"] and len(plain[0].arrays) == LEAVES
    assert program(SAM(loss_fn)) == plain
    assert program(SAM(loss_fn, axis_name=meshes.AXIS)) == 2 * plain


@pytest.mark.parametrize("axis_type", ["auto", "explicit"])
@pytest.mark.parametrize("name", ["norm", "dot", "l2", "optax"])
def test_sums_over_spread_parameters_are_one_reduction(name, axis_type):
    mesh = meshes.data_mesh(8, axis_type)
    rng = np.random.default_rng(0)
    params = {
        str(i): rng.normal(size=shape).astype(np.float32) for i, shape in enumerate((SQUARE, ROWS, (4, 40), (8, 3, 3), (5, 3)))
    }
    squares = sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in params.values())
    fn, want = {
        "norm": (trees.global_norm, np.sqrt(squares)),
        "dot": (lambda p: trees.vdot(p, p), squares),
        "l2": (rj.weights.l2, squares / 2),
        "optax": (optax.tree.norm, np.sqrt(squares)),
    }[name]
    with jax.set_mesh(mesh):
        placed = jax.tree.map(jax.device_put, params, meshes.largest_axis_sharding(mesh, params))
        program = jax.jit(fn).lower(placed).compile()
        np.testing.assert_allclose(program(placed), want, rtol=1e-6)
    (found,) = collectives(program)
    assert found.kind == "all-reduce" and found.scalars
    if axis_type == "explicit" and name in ("norm", "dot"):
        assert found.arrays == (("f32", ()),)


def test_count_of_collectives_reads_kinds_shapes_and_bytes():
    mesh, axis = meshes.data_mesh(8), meshes.AXIS

    def moves(x):
        rows = jax.lax.ppermute(x, axis, [(i, (i + 1) % 8) for i in range(8)])
        columns = jax.lax.all_to_all(x, axis, 1, 0, tiled=True)
        return rows, columns, jax.lax.all_gather(x, axis, tiled=True), jax.lax.psum(x.astype("bfloat16"), axis)

    mapped = jax.shard_map(moves, mesh=mesh, in_specs=jax.P(axis), out_specs=jax.P(axis), check_vma=False)
    found = {c.kind: c for c in collectives(jax.jit(mapped).lower(np.ones((16, 8), np.float32)).compile())}
    assert set(found) == {"collective-permute", "all-to-all", "all-gather", "all-reduce"}
    assert found["all-gather"].arrays == (("f32", (16, 8)),) and found["all-gather"].bytes == 512
    assert found["collective-permute"].bytes == 64 and not found["collective-permute"].scalars
    assert found["all-to-all"].bytes == 64


@pytest.mark.slow
def test_table_names_what_each_technique_moves(tmp_path, capsys, monkeypatch):
    layouts = ("state on every device, Auto mesh", "state on every device, shard_map")
    monkeypatch.setattr(devices, "LAYOUTS", {name: devices.LAYOUTS[name] for name in layouts})
    assert devices.main(["--shapes", "mlp", "--out", str(tmp_path)]) == 0
    auto, mapped = (panel["subjects"] for panel in json.loads((tmp_path / "devices-cpu.json").read_text())["panels"])
    one, two = auto[devices.PLAIN]["all-reduce"], auto["objectives: sam"]["all-reduce"]
    assert two == {name: 2 * value for name, value in one.items()}
    nothing = ("inputs: cutmix, within_shard", "layers: dropout, drop_path", "penalties: l2", "gradients: orthogonal_gradient")
    assert all(auto[name] == auto[devices.PLAIN] for name in nothing)
    assert "all-gather" in auto["inputs: cutmix"] and "all-gather" not in mapped["inputs: cutmix"]
    assert mapped["losses: elr"]["all-gather"]["operations"] > 0
    assert "| objectives: sam | 2 of 14 arrays" in capsys.readouterr().out
    with pytest.raises(ValueError, match="shapes must be among mlp, resnet, vit, got lenet"):
        devices.DevicesConfig(shapes=("lenet",))
