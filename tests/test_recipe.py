"""The pipeline of `make_train_step` equals the same step written out, and composes techniques of every kind."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from regjax.core.types import Strength

B, H, K, N = 8, 4, 3, 16
KEY = jax.random.key(0)
IMAGES = jax.random.normal(jax.random.key(1), (N, H, H, 1))
LABELS = jnp.arange(N) % K
BATCH = {"image": IMAGES[:B], "label": LABELS[:B], "index": jnp.arange(B)}
PARAMS = {
    "l0": {"kernel": 0.3 * jax.random.normal(jax.random.key(2), (H * H, 8)), "bias": jnp.zeros(8)},
    "l1": {"kernel": 0.3 * jax.random.normal(jax.random.key(3), (8, K)), "bias": jnp.zeros(K)},
}
STATE = {"mean": jnp.zeros(8), "count": jnp.zeros((), jnp.int32)}


def apply_fn(params, state, images, *, key, hooks, training):
    """A two-layer network with a running mean of its features, like a BatchNorm statistic."""
    features = jax.nn.relu(images.reshape(len(images), -1) @ params["l0"]["kernel"] + params["l0"]["bias"])
    head = lambda h: h @ params["l1"]["kernel"] + params["l1"]["bias"]
    seen = features
    if training:
        state = {"mean": 0.9 * state["mean"] + 0.1 * features.mean(0), "count": state["count"] + 1}
        seen = rj.layers.dropout(jax.random.fold_in(key, 0), seen, rate=hooks.dropout)
        if hooks.features:
            seen = hooks.features(jax.random.fold_in(key, 1), seen)
        if hooks.head:
            return rj.Outputs(hooks.head(jax.random.fold_in(key, 2), head, seen), features, state)
    return rj.Outputs(head(seen), features, state)


def make(recipe, **options):
    train = rj.make_train_step(recipe, apply_fn, num_classes=K, **options)
    return train, train.init(KEY, PARAMS, STATE, labels=LABELS)


def assert_close(a, b, tolerance=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def test_plain_recipe_is_the_plain_optax_step():
    train, state = make(rj.Recipe(optimizer=optax.adam(1e-2)))
    step = jax.jit(train.step)

    def loss_fn(params):
        logits = apply_fn(params, STATE, BATCH["image"], key=KEY, hooks=rj.Hooks(), training=True).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, BATCH["label"]).mean()

    tx, params = optax.adam(1e-2), PARAMS
    opt_state = tx.init(params)
    for i in range(3):
        value, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        state, metrics = step(state, BATCH)
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
        np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-5)
        assert int(state.step) == i + 1 == int(state.model_state["count"])
    assert_close(state.params, params)
    assert step._cache_size() == 1


def test_every_stage_in_its_place_equals_the_step_written_out():
    recipe = rj.Recipe(
        inputs=(functools.partial(rj.inputs.cutout, length=2),),
        features=((0.1, lambda features, labels: jnp.mean(features**2)),),
        loss=functools.partial(rj.losses.maxsup, weight=optax.linear_schedule(0.1, 0.2, 2)),
        penalties=((optax.constant_schedule(1e-2), rj.weights.l2),),
        objectives=(functools.partial(rj.objectives.sam, rho=0.1),),
        gradients=(optax.scale(2.0),),
        optimizer=optax.sgd(0.1),
        weights=(rj.gradients.decoupled_weight_decay(0.01),),
    )
    train, state = make(recipe)
    got, metrics = jax.jit(train.step)(state, BATCH)

    key = jax.random.fold_in(state.key, 0)
    input_key, _ = jax.random.split(key)
    images, _ = rj.inputs.cutout(jax.random.fold_in(input_key, 0), BATCH["image"], length=2)

    def loss_fn(params):
        out = apply_fn(params, STATE, images, key=KEY, hooks=rj.Hooks(), training=True)
        task = rj.losses.maxsup(out.logits, BATCH["label"], weight=0.1).mean()
        return task + 0.1 * jnp.mean(out.features**2) + 1e-2 * rj.weights.l2(params)

    grads = jax.grad(rj.objectives.sam(loss_fn, rho=0.1))(PARAMS)
    is_kernel = lambda path: path[-1].key == "kernel"
    want = jax.tree_util.tree_map_with_path(lambda path, p, g: p * (1 - 0.01 * is_kernel(path)) - 0.2 * g, PARAMS, grads)
    assert_close(got.params, want)
    assert set(metrics) >= {"loss", "task_loss", "penalty", "grad_norm"}
    # The running statistics are those of the clean pass, and were updated once.
    clean = apply_fn(PARAMS, STATE, images, key=KEY, hooks=rj.Hooks(), training=True).state
    assert_close(got.model_state, clean)


def test_attacks_and_local_penalties_see_the_training_pass_around_the_images():
    """The model trains on the attacked images; the penalties are taken around the images before, with other keys."""

    def bright(loss_fn, params, images, labels, *, key, size: Strength):
        gradient = jax.grad(loss_fn, argnums=1)(params, images, labels)
        return jax.lax.stop_gradient(images + size * jnp.sign(gradient) + 1e-3 * jax.random.normal(key, images.shape))

    def slope(logits_fn, *, power: Strength):
        return lambda params, key, images: jnp.mean(jnp.abs(logits_fn(params, images + 0.1)) ** power)

    def labelled(logits_fn):
        return lambda params, key, x, y: jnp.mean(logits_fn(params, x)[:, 0] * y) + jax.random.uniform(key) * jnp.mean(x)

    doubled = optax.linear_schedule(0.1, 0.3, 2)
    recipe = rj.Recipe(
        inputs=(functools.partial(rj.inputs.cutout, length=2),),
        attack=functools.partial(bright, size=doubled),
        local=((doubled, functools.partial(slope, power=lambda step: 2.0)),),
        optimizer=optax.sgd(0.1),
    )
    train, state = make(recipe)
    got, metrics = jax.jit(train.step)(state, BATCH)
    labels = jax.nn.one_hot(BATCH["label"], K)

    key = jax.random.fold_in(state.key, 0)
    images, _ = rj.inputs.cutout(jax.random.fold_in(jax.random.split(key)[0], 0), BATCH["image"], length=2)
    forward = lambda params, x: apply_fn(params, STATE, x, key=KEY, hooks=rj.Hooks(), training=True).logits
    task = lambda params, x, y: rj.losses.label_smoothing(forward(params, x), y, alpha=0.0).mean()
    attacked = bright(task, PARAMS, images, labels, key=jax.random.fold_in(key, 2), size=0.1)
    assert float(jnp.max(jnp.abs(attacked - images))) > 0.09

    def loss_fn(params):
        return task(params, attacked, labels) + 0.1 * jnp.mean(forward(params, images + 0.1) ** 2)

    value, grads = jax.value_and_grad(loss_fn)(PARAMS)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    assert_close(got.params, jax.tree.map(lambda p, g: p - 0.1 * g, PARAMS, grads))
    # Labels, as class ids where nothing mixes them, and a key of its own go to a penalty that asks for four arguments.
    train, state = make(rj.Recipe(local=((0.5, labelled),)))
    _, metrics = jax.jit(train.step)(state, BATCH)
    draw = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(state.key, 0), 3), 0))
    x, y = BATCH["image"], BATCH["label"]
    want = task(PARAMS, x, y) + 0.5 * (jnp.mean(forward(PARAMS, x)[:, 0] * y) + draw * jnp.mean(x))
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-5)


def test_objectives_of_losses_per_example_and_with_memory():
    labels_arg = lambda batch, key: batch["label"]
    rare = functools.partial(rj.objectives.imbsam, class_counts=[9, 9, 2], tail_threshold=5, rho=0.3, labels_arg=labels_arg)
    features = ((0.1, lambda features, labels: jnp.mean(features**2)),)
    look = functools.partial(rj.objectives.look_sam, rho=0.3, period=2)
    train, state = make(rj.Recipe(objectives=(rare, look), features=features, optimizer=optax.sgd(0.1)))
    step = jax.jit(train.step)
    states = [state, *(state := step(state, BATCH)[0] for _ in range(2))]

    def losses(params, batch, key):
        out = apply_fn(params, STATE, batch["image"], key=KEY, hooks=rj.Hooks(), training=True)
        return rj.losses.label_smoothing(out.logits, batch["label"], alpha=0.0) + 0.1 * jnp.mean(out.features**2), out.state

    written = rj.objectives.look_sam(rare(losses, has_aux=True), rho=0.3, period=2, has_aux=True)
    params, memory = PARAMS, written.init(PARAMS)
    for i in range(2):
        (_, (memory, _)), grads = jax.value_and_grad(written.apply, argnums=1, has_aux=True)(memory, params, BATCH, KEY)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        assert_close(states[i + 1].params, params)
        assert int(states[i + 1].model_state["count"]) == i + 1
    assert_close(states[2].memory["objectives"], memory)
    for order in ((look, rj.objectives.sam), (rj.objectives.sam, rare)):
        with pytest.raises(ValueError, match="make_train_step: objectives"):
            train, state = make(rj.Recipe(objectives=order))
            train.step(state, BATCH)


STATEFUL = {
    "elr": lambda: rj.Recipe(loss=rj.losses.elr(N, K)),
    "ps_kd": lambda: rj.Recipe(loss=rj.losses.ps_kd(N, K, total_epochs=4)),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_memories_are_written_at_the_batch_rows_alone(name):
    train, state = make(STATEFUL[name](), steps_per_epoch=2)
    after, _ = jax.jit(train.step)(state, BATCH)
    changed = np.any(np.asarray(jax.tree.leaves(after.memory["loss"])[0] != jax.tree.leaves(state.memory["loss"])[0]), axis=1)
    np.testing.assert_array_equal(changed, np.arange(N) < B)
    with pytest.raises(ValueError, match="index"):
        train.step(state, {"image": BATCH["image"], "label": BATCH["label"]})


def everything():
    return rj.Recipe(
        inputs=(functools.partial(rj.inputs.mixup, alpha=1.0), functools.partial(rj.inputs.cutmix, prob=0.5)),
        layers=rj.Hooks(
            dropout=rj.schedules.early_dropout(0.3, cutoff_steps=4),
            features=functools.partial(rj.layers.nested_dropout, probs=rj.layers.nested_dropout_probs(8, scale=4.0)),
        ),
        features=((1.0, rj.features.neural_collapse(K, 8)),),
        loss=rj.losses.elr(N, K),
        penalties=((1e-3, rj.weights.l2), (1e-3, rj.weights.stateful_spectral_penalty())),
        objectives=(functools.partial(rj.objectives.amp, epsilon=0.1), functools.partial(rj.objectives.sam, rho=0.05)),
        gradients=(rj.gradients.orthogonal_gradient(),),
        optimizer=optax.adam(1e-2),
        weights=(rj.gradients.proximal_step(rj.weights.prox_group_lasso, 1e-4),),
    )


def test_a_technique_of_every_stage_in_one_step_trains_and_vmaps_over_seeds():
    train = rj.make_train_step(everything(), apply_fn, num_classes=K)
    keys = jax.random.split(KEY, 2)
    step = jax.jit(jax.vmap(train.step, in_axes=(0, None)))
    states = jax.vmap(lambda key: train.init(key, PARAMS, STATE))(keys)
    first = None
    for _ in range(30):
        states, metrics = step(states, BATCH)
        first = metrics["task_loss"] if first is None else first
    assert np.all(np.isfinite(metrics["loss"])) and np.all(metrics["task_loss"] < first)
    assert step._cache_size() == 1

    one, alone = train.init(keys[0], PARAMS, STATE), jax.jit(train.step)
    for _ in range(3):
        one, _ = alone(one, BATCH)
    states = jax.vmap(lambda key: train.init(key, PARAMS, STATE))(keys)
    for _ in range(3):
        states, _ = step(states, BATCH)
    assert_close(one.params, jax.tree.map(lambda p: p[0], states.params), 1e-4)


def test_sampled_heads_average_losses_and_refuse_memories():
    head = functools.partial(rj.layers.multi_sample_dropout, num_samples=4, rate=0.0)
    train, state = make(rj.Recipe(layers=rj.Hooks(head=head)))
    plain, plain_state = make(rj.Recipe())
    assert_close(train.step(state, BATCH)[0].params, plain.step(plain_state, BATCH)[0].params)
    train, state = make(rj.Recipe(layers=rj.Hooks(head=head), loss=rj.losses.elr(N, K)))
    with pytest.raises(ValueError, match=r"layers\.head"):
        train.step(state, BATCH)


@pytest.mark.parametrize("place", [0, 1])
def test_manifold_mixes_labels_and_what_enters_one_place(place):
    partner, lams = jnp.roll(jnp.arange(B), 1), jnp.where(jnp.arange(2) == place, 0.3, 1.0)
    mixing = lambda x: 0.3 * x + 0.7 * x[partner]
    seen = []

    def draw(key, batch_size, *, alpha: Strength):
        seen.append((batch_size, float(alpha)))
        return lams, jnp.float32(0.3), partner

    def apply(params, state, images, *, key, hooks, training):
        features = jax.nn.relu(hooks.mix(0, images).reshape(len(images), -1) @ params["l0"]["kernel"])
        logits = hooks.mix(2, hooks.mix(1, features)) @ params["l1"]["kernel"]  # place 2 is none of the candidates
        return rj.Outputs(logits, features, state)

    recipe = rj.Recipe(layers=rj.Hooks(manifold=functools.partial(draw, alpha=lambda step: 2.0 + step)))
    train = rj.make_train_step(recipe, apply, num_classes=K)
    _, metrics = train.step(train.init(KEY, PARAMS, STATE), BATCH)
    images = BATCH["image"].reshape(B, -1)
    features = jax.nn.relu((mixing(images) if place == 0 else images) @ PARAMS["l0"]["kernel"])
    logits = (mixing(features) if place == 1 else features) @ PARAMS["l1"]["kernel"]
    want = optax.softmax_cross_entropy(logits, mixing(jax.nn.one_hot(BATCH["label"], K))).mean()
    assert float(metrics["loss"]) == pytest.approx(float(want), rel=1e-6)
    assert seen == [(B, 2.0)]


def test_groups_of_the_batch_average_their_statistics_and_refuse_memories():
    grouped = functools.partial(rj.objectives.sam, rho=0.1, num_groups=2)
    train, state = make(rj.Recipe(objectives=(grouped,), optimizer=optax.sgd(0.1)))
    after, metrics = jax.jit(train.step)(state, BATCH)

    def loss_fn(params, images, labels):
        logits = apply_fn(params, STATE, images, key=KEY, hooks=rj.Hooks(), training=True).logits
        return rj.losses.label_smoothing(logits, labels, alpha=0.0).mean()

    sam = jax.grad(rj.objectives.sam(loss_fn, rho=0.1))
    halves = [sam(PARAMS, BATCH["image"][half], BATCH["label"][half]) for half in (slice(0, 4), slice(4, 8))]
    want = jax.tree.map(lambda p, a, b: p - 0.05 * (a + b), PARAMS, *halves)
    assert_close(after.params, want)
    plain, plain_state = make(rj.Recipe())
    assert_close(after.model_state, plain.step(plain_state, BATCH)[0].model_state)
    assert metrics["loss"].shape == ()
    train, state = make(rj.Recipe(objectives=(grouped,), loss=rj.losses.elr(N, K)))
    with pytest.raises(ValueError, match="num_groups=1"):
        train.step(state, BATCH)


@pytest.mark.parametrize("style", ["shard_map", "pmap"])
def test_mapped_over_devices_with_axis_name_equals_one_device(style):
    recipe = rj.Recipe(
        loss=rj.losses.elr(N, K),
        penalties=((1e-2, rj.weights.l2),),
        objectives=(functools.partial(rj.objectives.sam, rho=0.1, axis_name="data"),),
        optimizer=optax.sgd(0.1, momentum=0.9),
    )
    mapped, state = make(recipe, axis_name="data")
    single, _ = make(rj.Recipe(**{**recipe.__dict__, "objectives": (functools.partial(rj.objectives.sam, rho=0.1),)}))
    if style == "shard_map":
        mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        run = jax.jit(
            jax.shard_map(
                mapped.step, mesh=mesh, in_specs=(jax.P(), jax.P("data")), out_specs=(jax.P(), jax.P()), check_vma=False
            )
        )
        step = run
    else:
        run = jax.pmap(mapped.step, axis_name="data", in_axes=(None, 0), out_axes=None)
        step = lambda state, batch: run(state, jax.tree.map(lambda x: x.reshape(8, 1, *x.shape[1:]), batch))
    want, got = state, state
    for _ in range(2):
        want, want_metrics = single.step(want, BATCH)
        got, metrics = step(got, BATCH)
    assert_close(got.params, want.params, 1e-5)
    assert_close(got.memory["loss"], want.memory["loss"], 1e-5)
    assert_close(got.model_state, want.model_state, 1e-5)
    np.testing.assert_allclose(metrics["loss"], want_metrics["loss"], rtol=1e-5)


def test_bad_recipes_are_named():
    for field, value, text in (
        ("inputs", rj.inputs.mixup, "inputs must be a tuple"),
        ("penalties", (rj.weights.l2,), "pairs"),
        ("penalties", ((float("nan"), rj.weights.l2),), "finite"),
        ("local", ((-jnp.inf, rj.weights.l2),), "finite"),
        ("layers", {"dropout": 0.5}, "layers must be a regjax.Hooks"),
    ):
        with pytest.raises(ValueError, match=text):
            rj.Recipe(**{field: value})
    with pytest.raises(ValueError, match="num_classes"):
        rj.make_train_step(rj.Recipe(), apply_fn, num_classes=0)


EXACT = rj.Recipe(
    loss=rj.losses.elr(N, K),
    penalties=((1e-2, rj.weights.l2),),
    gradients=(rj.gradients.orthogonal_gradient(),),
    optimizer=optax.adamw(1e-2),
    weights=(rj.gradients.decoupled_weight_decay(1e-3),),
)
"""Nothing in it looks at the batch as a set."""


@pytest.mark.parametrize("count", [2, 4])
def test_microbatches_of_losses_by_example_are_the_whole_batch(count):
    (whole, want), (parts, _) = make(EXACT), make(EXACT, microbatches=count)
    got, steps = want, [jax.jit(train.step) for train in (whole, parts)]
    for _ in range(3):
        want, want_metrics = steps[0](want, BATCH)
        got, metrics = steps[1](got, BATCH)
        assert_close(metrics, want_metrics, 1e-5)
    assert_close((got.params, got.memory), (want.params, want.memory), 1e-5)
    # What is written once a pass is written once a part: the network's own mean moves with each.
    assert int(got.model_state["count"]) == 3 * count and int(want.model_state["count"]) == 3


def test_microbatches_perturb_and_mix_each_part_by_itself():
    sam = functools.partial(rj.objectives.sam, rho=0.2)
    turn = lambda key, x, y: (0.6 * x + 0.4 * jnp.flip(x, 0), 0.6 * y + 0.4 * jnp.flip(y, 0))
    recipe = rj.Recipe(inputs=(turn,), objectives=(sam,), optimizer=optax.sgd(0.1))
    parts, state = make(recipe, microbatches=2)
    got, _ = jax.jit(parts.step)(state, BATCH)

    def loss_fn(params, images, labels):
        images, labels = turn(KEY, images, jax.nn.one_hot(labels, K))
        logits = apply_fn(params, STATE, images, key=KEY, hooks=rj.Hooks(), training=True).logits
        return optax.softmax_cross_entropy(logits, labels).mean()

    halves = [jax.grad(sam(loss_fn))(PARAMS, BATCH["image"][j::2], BATCH["label"][j::2]) for j in range(2)]
    want = jax.tree.map(lambda p, a, b: p - 0.1 * (a + b) / 2, PARAMS, *halves)
    assert_close(got.params, want, 1e-6)
    whole = make(recipe)[0]
    assert float(optax.tree.norm(optax.tree.sub(whole.step(state, BATCH)[0].params, want))) > 1e-4


def test_accumulation_by_multi_steps_is_one_step_of_all_its_batches():
    """The whole gradient side goes inside: what runs at every call of the step would run on parts of a gradient."""
    transform = EXACT.transform()
    accumulated = optax.MultiSteps(transform, every_k_schedule=2).gradient_transformation()
    recipe = rj.Recipe(loss=EXACT.loss, penalties=EXACT.penalties, optimizer=accumulated)
    (train, got), (whole, want) = make(recipe), make(EXACT)
    step, step_whole = jax.jit(train.step), jax.jit(whole.step)
    for _ in range(2):
        want, _ = step_whole(want, BATCH)
        for half in (slice(0, 4), slice(4, 8)):
            before = got.params
            got, _ = step(got, jax.tree.map(lambda x, half=half: x[half], BATCH))
            if half.start == 0:
                assert_close(got.params, before, 0)
    assert_close((got.params, got.memory), (want.params, want.memory), 1e-5)


def test_microbatches_in_bfloat16_sum_in_float32():
    """Each part's gradient is rounded to 8 bits as its parameters are; a sum in 8 bits would lose the small ones."""
    count, size = 64, 64
    slopes = jnp.where(jnp.arange(size) == 0, 256.0, 1.0).astype(jnp.bfloat16)
    dot = lambda params, state, images, **_: rj.Outputs(images @ params, images, state)
    recipe = rj.Recipe(loss=lambda logits, labels: logits[:, 0], optimizer=optax.sgd(1.0))
    train = rj.make_train_step(recipe, dot, num_classes=1, microbatches=count)
    state = train.init(KEY, jnp.zeros((1, 1), jnp.bfloat16))
    batch = {"image": slopes[:, None], "label": jnp.zeros(size, jnp.int32)}
    new, _ = jax.jit(train.step)(state, batch)
    assert new.params.dtype == jnp.bfloat16
    np.testing.assert_allclose(float(new.params[0, 0]), -(256 + 63) / 64, rtol=1 / 256)


def test_microbatches_that_do_not_divide_are_refused():
    train, state = make(rj.Recipe(), microbatches=3)
    with pytest.raises(ValueError, match=r"regjax.make_train_step: microbatches must be a divisor of the batch of 8, got 3"):
        train.step(state, BATCH)
    with pytest.raises(ValueError, match=r"microbatches must be .*got 0"):
        make(rj.Recipe(), microbatches=0)


@pytest.mark.parametrize("checked", [False, True])
def test_microbatches_inside_a_shard_map_are_the_whole_batch(checked):
    (whole, state), (mapped, _) = make(EXACT), make(EXACT, axis_name="data", microbatches=2)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    specs = {"in_specs": (jax.P(), jax.P("data")), "out_specs": jax.P()}
    got, metrics = jax.jit(jax.shard_map(mapped.step, mesh=mesh, check_vma=checked, **specs))(state, BATCH)
    want, want_metrics = whole.step(state, BATCH)
    assert_close((got.params, got.memory, metrics), (want.params, want.memory, want_metrics), 1e-5)


def test_a_model_state_that_init_was_not_given_is_named():
    stateless = lambda params, state, images, **rest: apply_fn(params, STATE, images, **rest)
    train = rj.make_train_step(rj.Recipe(optimizer=optax.sgd(0.1)), stateless, num_classes=K)
    with pytest.raises(ValueError, match=r"make_train_step: model_state must be given to `init` as apply_fn returns it.*count"):
        train.step(train.init(KEY, PARAMS), BATCH)
