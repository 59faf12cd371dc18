"""The guide's examples run as they stand, and what it calls equal to another library is equal."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import regjax as rj

GUIDE = Path(__file__).parent.parent / "docs" / "guide"
BLOCKS = {
    (page.stem, number): code
    for page in sorted(GUIDE.glob("*.md"))
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL), 1)
}
MIXING, SAM, KERAS, PRUNING, AVERAGES = (("coming_from", number) for number in range(1, 6))
B, K = 6, 10
LOGITS = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32) * 3
LABELS = np.random.default_rng(1).integers(0, 5, 8)
PARAMS = {
    "kernel": jnp.asarray(np.random.default_rng(2).normal(size=(4, 3)), jnp.float32),
    "bias": jnp.asarray(np.random.default_rng(3).normal(size=3), jnp.float32),
}
GRADS = jax.tree.map(jnp.cos, PARAMS)
close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def trees_close(ours, theirs):
    jax.tree.map(close, ours, theirs)


def context():
    """What the examples take as given: a model, a batch, a loss."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "hidden": {"kernel": jax.random.normal(keys[0], (16, 8)), "bias": jnp.zeros(8)},
        "head": {"kernel": jax.random.normal(keys[1], (8, K)), "bias": jnp.zeros(K)},
    }

    def apply(params, images):
        hidden = jax.nn.relu(images.reshape(len(images), -1) @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        return hidden @ params["head"]["kernel"] + params["head"]["bias"]

    def loss_fn(params, images, labels, key):
        return optax.softmax_cross_entropy_with_integer_labels(apply(params, images), labels).mean()

    images, labels = jax.random.normal(keys[2], (B, 4, 4, 1)), jnp.arange(B) % K
    modules = {"jax": jax, "jnp": jnp, "optax": optax, "nnx": nnx, "partial": partial, "rj": rj}
    return {**modules, "params": params, "apply": apply, "loss_fn": loss_fn, "images": images, "labels": labels, "key": keys[0]}


def ran(block):
    """The names that an example leaves behind, beside those given."""
    names = context()
    exec(BLOCKS[block], names)
    return names


def steps(tx, number=3):
    """The parameters after a few steps of constant gradients."""
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(number):
        updates, state = tx.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block[0]}-{block[1]}")
def test_every_example_runs(block):
    ran(block)


def test_the_side_by_side_page_has_its_five_cases():
    assert [block for block in BLOCKS if block[0] == "coming_from"] == [MIXING, SAM, KERAS, PRUNING, AVERAGES]


def test_mixing_is_timms():
    """As in timm: each of the two labels smoothed over all classes, with the weight of its image; the pair by reversal."""
    names = ran(MIXING)
    assert np.isfinite(
        jax.grad(names["loss_fn"])(names["params"], names["images"], names["labels"], names["key"])["head"]["bias"]
    ).all()
    mix = partial(names["mix"], cutmix_alpha=0.0)
    marks, _ = mix(names["key"], jnp.zeros((B, 4, 4, 1)).at[: B // 2].set(1.0), names["labels"])
    lam = marks[0, 0, 0, 0]
    assert 0 < lam < 1
    images, targets = mix(names["key"], names["images"], names["labels"])
    smooth = 0.9 * np.eye(K)[names["labels"]] + 0.1 / K
    close(images, lam * names["images"] + (1 - lam) * names["images"][::-1])
    close(targets, lam * smooth + (1 - lam) * smooth[::-1])


def test_sam_is_optaxs_in_both_modes():
    names = ran(SAM)
    args = names["images"], names["labels"], names["key"]
    gradient = lambda params: jax.grad(names["loss_fn"])(params, *args)
    ours = optax.apply_updates(names["params"], names["updates"])
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    tx = optax.contrib.sam(optax.sgd(0.1, momentum=0.9), ascent, sync_period=2)
    params, state = names["params"], tx.init(names["params"])
    for _ in range(2):
        updates, state = tx.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    trees_close(ours, params)
    tx = optax.contrib.sam(optax.sgd(0.1, momentum=0.9), ascent, opaque_mode=True)
    start = names["params"]
    updates, _ = tx.update(gradient(start), tx.init(start), start, grad_fn=lambda params, _: gradient(params))
    trees_close(ours, optax.apply_updates(start, updates))


def test_penalty_and_constraint_are_those_of_keras():
    """Keras' L1L2 is a sum of absolute values and one of squares; MaxNorm is on the columns of the kernel."""
    names = ran(KERAS)
    args = names["params"], names["images"], names["labels"], names["key"]
    kernel = np.asarray(names["params"]["hidden"]["kernel"], np.float64)
    expected = names["loss_fn"](*args) + 1e-5 * np.abs(kernel).sum() + 1e-4 * (kernel**2).sum()
    close(names["regularised"](*args), expected)
    tx, params = names["tx"], names["params"]
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    after = optax.apply_updates(params, updates)
    lengths = np.linalg.norm(kernel, axis=0)
    assert (lengths > 2).any()
    close(after["hidden"]["kernel"], kernel * np.minimum(lengths, 2) / lengths)
    trees_close(after["head"], params["head"])


def test_pruning_keeps_the_largest_of_all_layers():
    """The mask of `prune.global_unstructured`: round(amount * n) weights go, the smallest of all layers together."""
    names = ran(PRUNING)
    dense = context()["params"]
    kernels = [np.abs(np.asarray(dense[name]["kernel"])) for name in ("hidden", "head")]
    gone = round(0.8 * sum(kernel.size for kernel in kernels))
    threshold = np.sort(np.concatenate([kernel.ravel() for kernel in kernels]))[gone]
    for name, kernel in zip(("hidden", "head"), kernels, strict=True):
        np.testing.assert_array_equal(names["mask"][name]["kernel"], kernel >= threshold)
        np.testing.assert_array_equal(names["params"][name]["kernel"] != 0, kernel >= threshold)
    updates, _ = names["tx"].update(dense, names["tx"].init(names["params"]), names["params"])
    after = optax.apply_updates(names["params"], updates)
    np.testing.assert_array_equal(after["hidden"]["kernel"] != 0, kernels[0] >= threshold)
    assert rj.gradients.find_mask(names["gradual"].init(dense))["head"]["kernel"].all()


def test_averages_are_the_running_formulas():
    """PyTorch's: a weighted step towards the parameters, and the mean of those from step 750 on, every tenth."""
    names = ran(AVERAGES)
    states, slow = names["states"], names["params"]
    moved = lambda step: jax.tree.map(lambda w: w + (step - 740) / 10, names["params"])
    for step in (749, 750, 755, 760):
        ema, mean, states = names["average"](moved(step), states, step)
        slow = jax.tree.map(lambda a, w: 0.999 * a + 0.001 * w, slow, moved(step))
    trees_close(ema, slow)
    trees_close(mean, moved(755))


def test_losses_are_optaxs():
    hot = jax.nn.one_hot(LABELS, 5)
    close(
        rj.losses.label_smoothing(LOGITS, LABELS, alpha=0.1), optax.softmax_cross_entropy(LOGITS, optax.smooth_labels(hot, 0.1))
    )
    close(
        rj.losses.poly1_cross_entropy(LOGITS, LABELS, epsilon=2.0), optax.losses.poly_loss_cross_entropy(LOGITS, hot, epsilon=2.0)
    )
    teacher = LOGITS[::-1]
    theirs = optax.losses.kl_divergence(jax.nn.log_softmax(LOGITS), jax.nn.softmax(teacher))
    close(rj.losses.distillation(LOGITS, teacher, temperature=1.0), theirs)
    rows = LOGITS / np.linalg.norm(LOGITS, axis=1, keepdims=True)
    partner, others = np.roll(np.arange(8), 4), ~np.eye(8, dtype=bool)
    ours = rj.losses.label_smoothing(rows @ rows.T / 0.07, partner, alpha=0.0, where=others).mean()
    close(ours, optax.losses.ntxent(jnp.asarray(LOGITS), jnp.arange(8) % 4, temperature=0.07), rtol=1e-4)


def test_updates_are_optaxs_where_the_guide_says_so():
    penalty = rj.gradients.add_penalty(partial(rj.weights.l2, where="all"), 0.1)
    sgd = optax.sgd(0.05, momentum=0.9)
    trees_close(steps(optax.chain(penalty, sgd)), steps(optax.chain(optax.add_decayed_weights(0.1), sgd)))
    ours = rj.gradients.adamw_decoupled(0.05, weight_decay=0.05 * 0.1, where="all")
    trees_close(steps(ours), steps(optax.adamw(0.05, weight_decay=0.1)))
    trees_close(steps(rj.gradients.centralize_gradient(output_axis=0)), steps(optax.centralize()))
    usual = steps(rj.gradients.centralize_gradient())["kernel"]
    assert np.abs(usual - steps(optax.centralize())["kernel"]).max() > 0.1
    nonnegative = rj.gradients.proximal_step(partial(rj.weights.project_nonnegative, where="all"), 1.0)
    trees_close(steps(optax.chain(sgd, nonnegative)), steps(optax.chain(sgd, optax.keep_params_nonnegative())))


def test_averages_projections_and_schedules_are_optaxs():
    average = rj.weights.ema(0.9)
    trees_close(average.apply(average.init(PARAMS), GRADS)[0], optax.incremental_update(GRADS, PARAMS, 0.1))
    kernel = {"kernel": PARAMS["kernel"]}
    trees_close(rj.weights.project_l1_ball(kernel, radius=1.0), optax.projections.projection_l1_ball(kernel, 1.0))
    trees_close(rj.weights.project_l2_ball(kernel, radius=1.0), optax.projections.projection_l2_ball(kernel, 1.0))
    trees_close(rj.weights.project_simplex(kernel, total=1.0), optax.projections.projection_simplex(kernel))
    both = {"a": kernel["kernel"], "b": 2 * kernel["kernel"]}
    whole = optax.projections.projection_l2_ball(both, 1.0)
    each = rj.weights.project_l2_ball(both, radius=1.0)
    close(optax.tree.norm(whole), 1.0)
    close(optax.tree.norm(each), np.sqrt(2.0))
    theirs = optax.cosine_onecycle_schedule(50, 0.5, pct_start=0.3, div_factor=25.0, final_div_factor=1e4)
    ours = rj.schedules.one_cycle(total_steps=50, peak_value=0.5, endpoint="optax")
    at = jnp.arange(50)
    close(jax.vmap(ours)(at), jax.vmap(theirs)(at))


def test_conventions_of_other_libraries():
    """Keras' focal loss has a factor; torchvision's magnitude 9 of 31 is 3 of 10; a LoRA's scale is alpha over rank."""
    p = np.exp(LOGITS - LOGITS.max(1, keepdims=True))
    p = (p / p.sum(1, keepdims=True))[np.arange(8), LABELS]
    close(0.25 * rj.losses.focal(LOGITS, LABELS, gamma=2.0), -0.25 * (1 - p) ** 2 * np.log(p), rtol=1e-4)
    bins = lambda low, high: np.linspace(low, high, 31)[9]
    magnitude = lambda name: float(rj.inputs.randaugment_magnitude(name, 3.0))
    close([magnitude("rotate"), magnitude("shear_x"), magnitude("color")], [bins(0, 30), bins(0, 0.3), 1 + bins(0, 0.9)])
    layer = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    adapted = rj.layers.LoRALinear(layer, rank=4, alpha=8, rngs=nnx.Rngs(1))
    adapted.b[...] = jnp.ones((4, 3))
    x = jnp.ones((1, 4))
    close(adapted(x) - layer(x), 2 * x @ adapted.a[...] @ adapted.b[...], rtol=1e-4)
    default = rj.layers.LoRALinear(layer, rank=4, rngs=nnx.Rngs(1))
    default.b[...] = jnp.ones((4, 3))
    close(default(x) - layer(x), x @ default.a[...] @ default.b[...] / 4, rtol=1e-4, atol=1e-5)
