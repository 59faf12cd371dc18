"""Adapters: their formulas, and whole models that are adapted, trained by the adapters alone, and merged back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from sklearn.datasets import load_digits

import regjax as rj

lay = rj.layers
AdapterParam = lay.AdapterParam


class Block(nnx.Module):
    """A pre-norm transformer block; its feed-forward layers stand in a dictionary."""

    def __init__(self, rngs):
        self.norms = nnx.List([nnx.LayerNorm(8, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.mlp = nnx.Dict(up=nnx.Linear(8, 12, rngs=rngs), down=nnx.Linear(12, 8, rngs=rngs))

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp.down(nnx.gelu(self.mlp.up(self.norms[1](x))))


class Transformer(nnx.Module):
    """Patches by a convolution, two blocks, a layer that stands twice, and a head."""

    def __init__(self, rngs):
        self.patches = nnx.Conv(1, 8, (2, 2), strides=2, padding="VALID", rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        shared = nnx.Linear(8, 8, rngs=rngs)
        self.shared = nnx.List([shared, shared])
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = self.patches(x).reshape(x.shape[0], -1, 8)
        for block in self.blocks:
            x = block(x)
        for layer in self.shared:
            x = jnp.tanh(layer(x))
        return self.head(x.mean(1))


NET = Transformer(nnx.Rngs(0))
X = jax.random.normal(jax.random.key(1), (4, 4, 4, 1))
Y = jnp.arange(4) % 3
PROJECTIONS = [f"attention/{name}" for name in ("key", "out", "query", "value")]
PATHS = [f"blocks/{i}/{name}" for i in range(2) for name in (*PROJECTIONS, "mlp/down", "mlp/up")] + [
    "head",
    "patches",
    "shared/0",
]
run = jax.jit(lambda graph, state, x: nnx.merge(graph, state)(x), static_argnums=0)


def outputs(model, x=X):
    return run(*nnx.split(model), x)


def in_turn(*kinds):
    """A maker that gives the layers of a model one kind of adapter after the other."""
    made = []

    def make(layer, rngs):
        made.append(kinds[len(made) % len(kinds)])
        return made[-1](layer, rngs=rngs)

    return make


LORA = functools.partial(lay.LoRALinear, rank=2, alpha=3.0)
EXACT = in_turn(LORA, functools.partial(lay.LoRAGroup, rank=2, num=3), lay.SVDLinear)
SINGULAR = in_turn(functools.partial(lay.SORSALinear, rank=1, alpha=0.5), functools.partial(lay.LoRALinear, rank=1, init="pissa"))
EVERYTHING = lambda path, layer: True
FEED_FORWARD = lambda path, layer: "mlp" in path


def adapted(make=LORA, where=EVERYTHING, model=NET):
    return lay.adapt(model, make, where=where, rngs=nnx.Rngs(2))


def scrambled(model, by=0.3):
    """The model with other adapters, as training leaves them."""
    model = nnx.clone(model)
    for i, leaf in enumerate(jax.tree.leaves(nnx.state(model, AdapterParam), is_leaf=lambda v: isinstance(v, nnx.Variable))):
        leaf.set_value(leaf[...] + by * jax.random.normal(jax.random.key(i), leaf.shape))
    return model


def kinds(state):
    return jax.tree.map(lambda v: type(v).__name__, state, is_leaf=lambda v: isinstance(v, nnx.Variable))


@pytest.mark.parametrize(("make", "exact"), [(EXACT, True), (SINGULAR, False)], ids=["low rank", "singular"])
def test_a_model_is_adapted_and_merged_without_a_change(make, exact):
    before = jax.tree.map(jnp.copy, nnx.state(NET))
    model = adapted(make)
    assert list(lay.adapters_of(model)) == PATHS and model.shared[0] is model.shared[1]
    same = np.testing.assert_array_equal if exact else functools.partial(np.testing.assert_allclose, atol=1e-5)
    want = outputs(NET)
    same(outputs(model), want)
    plain = lay.merge(model)
    jax.tree.map(same, nnx.state(plain), nnx.state(NET))
    assert kinds(nnx.state(plain)) == kinds(nnx.state(NET)) and nnx.graphdef(plain) == nnx.graphdef(NET)

    trained = scrambled(model)
    got = outputs(trained)
    assert float(jnp.max(jnp.abs(got - want))) > 0.01
    merged = lay.merge(trained)
    np.testing.assert_allclose(outputs(merged), got, atol=2e-5)
    assert merged.shared[0] is merged.shared[1] and type(merged.blocks[0].attention.query) is nnx.LinearGeneral
    assert type(merged.patches) is nnx.Conv and merged.patches.strides == 2
    # Nothing that the user had has changed: neither the model, nor the one that was merged, nor what no adapter is on.
    jax.tree.map(np.testing.assert_array_equal, nnx.state(NET), before)
    assert type(trained.head) is not nnx.Linear
    np.testing.assert_array_equal(merged.blocks[1].norms[0].scale, NET.blocks[1].norms[0].scale)


def test_which_layers_are_adapted():
    dense = lay.adapt(NET, LORA, rngs=nnx.Rngs(2))
    assert list(lay.adapters_of(dense)) == [p for p in PATHS if p != "patches"], "convolutions only where they are named"
    model = adapted(where=FEED_FORWARD)
    assert list(lay.adapters_of(model)) == [p for p in PATHS if "mlp" in p]
    # A second set of adapters goes on the other layers; merged, on all again.
    both = adapted(functools.partial(lay.SORSALinear, rank=2), lambda path, layer: "attention" in path, model)
    assert {type(v).__name__ for v in lay.adapters_of(both).values()} == {"LoRALinear", "SORSALinear"}
    assert len(lay.adapters_of(adapted(model=lay.merge(scrambled(model))))) == len(PATHS)
    assert isinstance(lay.adapt(NET.head, LORA, rngs=nnx.Rngs(0)), lay.LoRALinear)
    assert type(lay.merge(lay.adapt(NET.head, LORA, rngs=nnx.Rngs(0)))) is nnx.Linear
    a = [layer.a[...] for layer in lay.adapters_of(dense).values() if layer.a.shape == (8, 2)]
    assert all(not np.array_equal(a[0], other) for other in a[1:]), "every layer has a start of its own"


def size(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_the_optimizer_trains_and_remembers_the_adapters_alone():
    model = adapted(where=FEED_FORWARD)
    trained = ("AdapterParam",)
    before = {k: jnp.copy(v[...]) for k, v in nnx.to_flat_state(nnx.state(model))}
    adapters = nnx.state(model, AdapterParam)
    assert size(adapters) == 2 * 2 * (2 * (8 + 12))
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=AdapterParam)
    moments = [x for x in jax.tree.leaves(nnx.state(optimizer)) if x.ndim]
    assert size(moments) == 2 * size(adapters)

    @nnx.jit
    def step(model, optimizer):
        loss_fn = lambda model: optax.softmax_cross_entropy_with_integer_labels(model(X), Y).mean()
        loss, grads = nnx.value_and_grad(loss_fn, argnums=nnx.DiffState(0, AdapterParam))(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(5)]
    assert losses[-1] < losses[0]
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        changed = not np.array_equal(variable[...], before[path])
        assert changed == (type(variable).__name__ in trained), path

    # With all parameters: the adapters and what no adapter is on; frozen kernels are none. And the adapters with the head.
    every = {path: type(v).__name__ for path, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    assert ("head", "kernel") in every and not any("mlp" in path and path[-1] in ("kernel", "bias") for path in every)
    head = nnx.Any(AdapterParam, nnx.All(nnx.Param, nnx.PathContains("head")))
    chosen = [path for path, _ in nnx.to_flat_state(nnx.state(model, head))]
    assert {path[0] for path in chosen if "mlp" not in path} == {"head"} and len(chosen) == 8 + 2


def test_states_of_adapters_are_trees_like_any_other(tmp_path):
    """In a pure loss: penalties, a sharpness-aware gradient, several adapters of one model at once, save and restore."""
    make = in_turn(functools.partial(lay.SORSALinear, rank=2), functools.partial(lay.LoRAGroup, rank=1, num=2))
    model = scrambled(adapted(make, FEED_FORWARD))
    graph, adapters, rest = nnx.split(model, AdapterParam, ...)
    groups = lay.adapter_groups(adapters, 2)
    assert [len(group) for group in groups] == [5, 5]
    assert lay.adapter_groups(nnx.state(model), r"blocks/\d+") == groups == lay.adapter_groups(model, r"blocks/\d+")
    assert [len(g) for g in lay.adapter_groups(nnx.state(adapted(lay.SVDLinear, FEED_FORWARD)), r"blocks/1")] == [2]

    def penalties(model, adapters):
        pego = rj.weights.orthogonal_group_penalty(model)
        return rj.weights.sorsa_orthonormality(adapters), pego, rj.weights.group_lasso(adapters, groups=groups)

    def loss_fn(adapters, x):
        model = nnx.merge(graph, adapters, rest)
        return jnp.mean(model(x) ** 2) + 1e-2 * sum(penalties(model, adapters))

    @jax.jit
    def both(adapters):
        several = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), adapters)
        served = jax.vmap(lambda a: nnx.merge(graph, a, rest)(X))(several)
        grads = jax.grad(rj.objectives.sam(loss_fn, rho=0.05))(adapters, X)
        inside = nnx.merge(graph, adapters, rest)
        listed = lay.adapters_of(inside)
        again = rj.weights.sorsa_orthonormality(listed), rj.weights.orthogonal_group_penalty(listed)
        return served, grads, penalties(inside, adapters), again

    served, grads, values, again = both(adapters)
    np.testing.assert_allclose(served[0], outputs(model), atol=1e-5)
    assert served.shape == (2, 4, 3) and not np.allclose(served[0], served[1])
    assert jax.tree.structure(grads) == jax.tree.structure(adapters)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
    layers = lay.adapters_of(model)
    by_hand = [
        np.linalg.norm(m.T @ m - np.eye(2))
        for v in layers.values()
        if isinstance(v, lay.SORSALinear)
        for m in (v.u[...], v.vt[...].T)
    ]
    np.testing.assert_allclose(values[0], np.mean(by_hand), rtol=1e-5)
    np.testing.assert_allclose(again, values[:2], rtol=1e-5)
    norms = [np.sqrt(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(adapters["blocks"][i]))) for i in range(2)]
    np.testing.assert_allclose(values[2], sum(norms), rtol=1e-5)

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "adapters", nnx.to_pure_dict(adapters))
        checkpointer.wait_until_finished()
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, nnx.to_pure_dict(adapters))
        restored = checkpointer.restore(tmp_path / "adapters", target)
    fresh = adapted(make, FEED_FORWARD)
    state = nnx.state(fresh, AdapterParam)
    nnx.replace_by_pure_dict(state, restored)
    nnx.update(fresh, state)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(fresh, AdapterParam), adapters)


class CNN(nnx.Module):
    """Convolutions of several kinds with BatchNorm, and a head."""

    def __init__(self, rngs):
        self.convs = nnx.List(
            [
                nnx.Conv(2, 6, (3, 3), strides=2, padding=1, use_bias=False, rngs=rngs),
                nnx.Conv(6, 6, (3, 3), padding="CIRCULAR", rngs=rngs),
                nnx.Conv(6, 6, (1, 1), feature_group_count=2, rngs=rngs),
                nnx.Conv(6, 4, (3, 3), kernel_dilation=2, rngs=rngs),
            ]
        )
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        for conv in self.convs[:3]:
            x = nnx.relu(self.norm(conv(x)))
        return self.head(self.convs[3](x).mean((1, 2)))


def test_a_convolutional_network():
    images = jax.random.normal(jax.random.key(3), (2, 6, 6, 2))
    net = CNN(nnx.Rngs(0))
    net.eval()
    make = in_turn(functools.partial(lay.SORSALinear, rank=2), functools.partial(lay.LoRAGroup, rank=2))
    model = adapted(make, model=net)
    assert list(lay.adapters_of(model)) == ["convs/0", "convs/1", "convs/3", "head"]
    np.testing.assert_allclose(outputs(model, images), outputs(net, images), atol=1e-5)
    trained = scrambled(model)
    plain = lay.merge(trained)
    np.testing.assert_allclose(outputs(plain, images), outputs(trained, images), atol=1e-4)
    assert nnx.graphdef(plain) == nnx.graphdef(net) and not np.allclose(outputs(plain, images), outputs(net, images), atol=1e-3)


def test_formulas_of_single_layers():
    rng = np.random.default_rng(0)
    x, kernel, bias = rng.normal(size=(5, 6)), rng.normal(size=(6, 4)), rng.normal(size=4)
    linear = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
    linear.kernel.set_value(jnp.asarray(kernel, jnp.float32))
    linear.bias.set_value(jnp.asarray(bias, jnp.float32))

    lora = scrambled(lay.LoRALinear(linear, rank=2, alpha=3.0, rngs=nnx.Rngs(1)))
    assert lora.scale == 1.5
    a, b = (np.asarray(v[...], np.float64) for v in (lora.a, lora.b))
    want = x @ kernel + bias + 1.5 * x @ a @ b
    np.testing.assert_allclose(lora(x.astype(np.float32)), want, rtol=1e-4, atol=1e-5)
    pure = lay.lora_apply(*(np.float32(v) for v in (x, kernel, a, b, bias)), scale=1.5)
    np.testing.assert_allclose(pure, want, rtol=1e-4, atol=1e-5)

    group = scrambled(lay.LoRAGroup(linear, rank=2, num=3, rngs=nnx.Rngs(1)))
    want = x @ kernel + bias
    for i in range(3):
        want = want + x @ np.asarray(group.a[...])[i] @ np.asarray(group.b[...])[i]
    np.testing.assert_allclose(group(x.astype(np.float32)), want, rtol=1e-4, atol=1e-5)

    svd = lay.SVDLinear(linear)
    np.testing.assert_allclose(svd.s[...], np.linalg.svd(kernel, compute_uv=False), rtol=1e-5)
    svd.eps.set_value(-svd.s[...])
    np.testing.assert_allclose(svd(x.astype(np.float32)), np.broadcast_to(bias, (5, 4)), atol=1e-5)
    svd.eps.set_value(svd.s[...])
    np.testing.assert_allclose(svd(x.astype(np.float32)), 2 * x @ kernel + bias, atol=1e-4)

    for layer, left, right in (
        (sorsa := lay.SORSALinear(linear, rank=2), "u", "vt"),
        (pissa := lay.LoRALinear(linear, rank=2, alpha=0.5, init="pissa"), "a", "b"),
    ):
        np.testing.assert_allclose(layer(x.astype(np.float32)), x @ kernel + bias, atol=1e-4)
        singular = np.linalg.svd(kernel, compute_uv=False)
        np.testing.assert_allclose(np.linalg.svd(layer.kernel[...], compute_uv=False), [*singular[2:], 0, 0], atol=1e-4)
        assert getattr(layer, left).shape == (6, 2) and getattr(layer, right).shape == (2, 4)
    assert pissa.scale == 0.25 and sorsa.scale == 1.0
    np.testing.assert_allclose(np.linalg.svd(0.25 * pissa.a[...] @ pissa.b[...], compute_uv=False)[:2], singular[:2], rtol=1e-4)
    factors = sorsa.kernel[...], sorsa.u[...], sorsa.s[...] + 1, sorsa.vt[...]
    merged = rj.weights.sorsa_merge(*factors)
    np.testing.assert_allclose(lay.sorsa_apply(jnp.float32(x), *factors), x @ np.asarray(merged), atol=1e-4)
    whole = lay.SORSALinear(linear, rank=4)
    np.testing.assert_allclose(whole.kernel[...], 0, atol=1e-5)


def test_the_start_of_a_low_rank_adapter():
    layer = lay.LoRALinear(jnp.zeros((100, 3)), rank=50, rngs=nnx.Rngs(0))
    a = np.asarray(layer.a[...])
    assert np.abs(a).max() <= 0.1 and np.abs(a).max() > 0.0999 and not np.any(layer.b[...])
    # The standard error of the mean of 5000 uniform numbers of deviation 0.1 / sqrt(3).
    deviation = 0.1 / np.sqrt(3)
    assert abs(a.mean()) < 4 * deviation / np.sqrt(a.size) and abs(a.std() / deviation - 1) < 0.03
    assert layer.scale == 1 / 50 and layer.bias is None


def test_dropout_is_of_the_adapters_input_and_unbiased():
    linear = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
    layer = scrambled(lay.LoRALinear(linear, rank=2, dropout_rate=0.5, rngs=nnx.Rngs(1)), 1.0)
    x = jnp.ones((4000, 6))
    quiet, noisy = layer(x, deterministic=True), layer(x)
    np.testing.assert_allclose(quiet, lay.merge(layer)(x), atol=1e-5)
    assert not np.array_equal(noisy, quiet) and not np.array_equal(noisy, layer(x)), "the stream moves"
    np.testing.assert_array_equal(layer(x, rngs=jax.random.key(0)), layer(x, rngs=jax.random.key(0)))
    error = np.asarray(noisy - quiet)
    assert np.all(np.abs(error.mean(0)) < 5 * error.std(0) / np.sqrt(4000) + 1e-6)
    model = nnx.Sequential(layer)
    model.eval()
    np.testing.assert_array_equal(model(x), quiet)
    model.train()
    assert not np.array_equal(model(x), quiet)
    assert not jax.tree.leaves(nnx.state(lay.LoRALinear(linear, rngs=nnx.Rngs(1)), nnx.RngState)), "no stream without dropout"


def test_small_adapters_count_beside_a_kernel_of_low_precision():
    linear = nnx.Linear(4, 4, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, use_bias=False, rngs=nnx.Rngs(0))
    layer = lay.LoRALinear(linear, rank=1, alpha=1.0, rngs=nnx.Rngs(1))
    assert layer.a.dtype == jnp.float32 and layer.kernel.dtype == jnp.bfloat16
    layer.kernel.set_value(jnp.eye(4, dtype=jnp.bfloat16))
    layer.a.set_value(jnp.ones((4, 1)))
    layer.b.set_value(jnp.full((1, 4), 2.0**-12))
    x = jnp.array([1, -1, 1 / 256, 0], jnp.bfloat16)
    y = layer(x)
    # The adapter adds 2^-20 to each output: lost in a merged kernel, kept where the output is small.
    assert y.dtype == jnp.bfloat16 and float(y[3]) == 2.0**-20
    assert lay.merge(layer).kernel.dtype == jnp.bfloat16


def test_layers_stacked_for_a_scan_are_adapted_each():
    make = nnx.vmap(lambda key: nnx.Linear(4, 4, rngs=nnx.Rngs(key)), in_axes=0, out_axes=0)
    layers = make(jax.random.split(jax.random.key(0), 3))
    with pytest.raises(ValueError, match=r"stacked for a scan.*got float32\[3,4,4\]"):
        lay.adapt(nnx.Sequential(layers), LORA, rngs=nnx.Rngs(0))
    each = nnx.vmap(lambda layer, key: lay.adapt(layer, LORA, rngs=nnx.Rngs(key)), in_axes=(0, 0), out_axes=0)
    many = each(layers, jax.random.split(jax.random.key(1), 3))
    assert many.a.shape == (3, 4, 2) and many.kernel.shape == (3, 4, 4)
    run = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    x = jnp.ones((2, 4))
    np.testing.assert_array_equal(run(x, many), run(x, layers))
    plain = nnx.vmap(lay.merge, in_axes=0, out_axes=0)(scrambled(many))
    assert type(plain) is nnx.Linear and plain.kernel.shape == (3, 4, 4)


def test_a_metadata_of_a_kernel_comes_back():
    init = nnx.with_metadata(nnx.initializers.ones, note="columns")
    layer = nnx.Linear(3, 2, kernel_init=init, rngs=nnx.Rngs(0))
    adapted = lay.adapt(layer, LORA, rngs=nnx.Rngs(0))
    assert adapted.kernel.note == "columns" and lay.merge(adapted).kernel.note == "columns"


def digits(classes):
    data = load_digits()
    x, y = (data.data / 16).astype(np.float32), data.target
    keep = np.isin(y, classes)
    return jnp.asarray(x[keep]), jnp.asarray(y[keep])


def mlp(seed=0):
    rngs = nnx.Rngs(seed)
    return nnx.Sequential(nnx.Linear(64, 64, rngs=rngs), nnx.relu, nnx.Linear(64, 10, rngs=rngs))


def fit(model, loss_fn, steps, rate, wrt):
    """Trains the variables of one type by Adam, whole batch after whole batch, in one program."""
    graph, params, rest = nnx.split(model, wrt, ...)
    tx = optax.adam(rate)

    @jax.jit
    def train(params):
        def step(carry, i):
            params, state = carry
            grads = jax.grad(lambda p: loss_fn(nnx.merge(graph, p, rest)))(params)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))[0][0]

    return nnx.merge(graph, train(params), rest)


def cross_entropy(model, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()


def accuracy(model, x, y):
    return float(jnp.mean(jnp.argmax(model(x), -1) == y))


@pytest.mark.slow
def test_sorsa_keeps_its_vectors_orthonormal_and_learns():
    x, y = digits(range(5))
    new_x, new_y = digits(range(5, 10))
    base = fit(mlp(), lambda m: cross_entropy(m, x, y), 200, 3e-3, nnx.Param)
    ends = {}
    for gamma in (0.0, 1.0):
        loss_fn = lambda m, g=gamma: cross_entropy(m, new_x, new_y) + g * rj.weights.sorsa_orthonormality(m)
        model = fit(lay.adapt(base, lay.SORSALinear), loss_fn, 60, 1e-2, AdapterParam)
        ends[gamma] = float(rj.weights.sorsa_orthonormality(model)), accuracy(model, new_x, new_y)
    lora = lay.adapt(base, functools.partial(lay.LoRALinear, rank=4, alpha=4.0), rngs=nnx.Rngs(1))
    lora = fit(lora, lambda m: cross_entropy(m, new_x, new_y), 60, 1e-2, AdapterParam)
    assert ends[1.0][0] < 0.1 < 1.0 < ends[0.0][0]
    assert ends[1.0][1] > accuracy(lora, new_x, new_y) and ends[1.0][1] > ends[0.0][1] - 0.02


@pytest.mark.slow
def test_the_members_of_a_group_keep_off_the_kernel_and_each_other():
    x, y = digits(range(5))
    new_x, new_y = digits(range(5, 10))
    base = fit(mlp(), lambda m: cross_entropy(m, x, y), 200, 3e-3, nnx.Param)
    unit = lambda m: m / (jnp.linalg.norm(m, axis=-2, keepdims=True) + 1e-9)
    ends = {}
    for strength in (0.0, 1e-3):
        model = lay.adapt(base, functools.partial(lay.LoRAGroup, rank=2, num=2), rngs=nnx.Rngs(1))
        loss_fn = lambda m, s=strength: cross_entropy(m, new_x, new_y) + s * rj.weights.orthogonal_group_penalty(m)
        model = fit(model, loss_fn, 60, 1e-2, AdapterParam)
        cosines = []
        for layer in lay.adapters_of(model).values():
            members = layer.a[...] @ layer.b[...]
            cosines += [jnp.abs(unit(layer.kernel[...]).T @ unit(d)).mean() for d in members]
            cosines += [jnp.abs(unit(members[0]).T @ unit(members[1])).mean()]
        ends[strength] = float(np.mean(cosines)), accuracy(model, new_x, new_y)
    assert ends[1e-3][0] < 0.8 * ends[0.0][0], ends
    assert ends[1e-3][1] > ends[0.0][1] - 0.03, ends


@pytest.mark.slow
def test_a_class_is_forgotten_with_few_groups():
    x, y = digits(range(10))
    forget = np.asarray(y) == 0
    base = fit(mlp(), lambda m: cross_entropy(m, x, y), 200, 3e-3, nnx.Param)
    kept = accuracy(base, x[~forget], y[~forget])

    def loss_fn(model, alpha):
        lost = rj.objectives.bounded_forgetting(cross_entropy(model, x[forget], y[forget]), bound=10.0)
        params = nnx.state(model, AdapterParam)
        sparse = rj.weights.group_lasso(params, groups=lay.adapter_groups(params, 2))
        return cross_entropy(model, x[~forget], y[~forget]) + 0.2 * lost + alpha * sparse

    # The penalty comes after a warm-up: from the start, where b is 0, it would keep every group at 0.
    warm = fit(lay.adapt(base, lay.LoRALinear, rngs=nnx.Rngs(1)), lambda m: loss_fn(m, 0.0), 50, 1e-2, AdapterParam)
    norms = {}
    for alpha in (0.0, 0.1):
        model = fit(warm, lambda m, alpha=alpha: loss_fn(m, alpha), 150, 1e-2, AdapterParam)
        forgotten, remaining = accuracy(model, x[forget], y[forget]), accuracy(model, x[~forget], y[~forget])
        assert forgotten < 0.05 and remaining > kept - 0.02
        assert float(rj.diagnostics.forgetting_score(1 - forgotten, remaining)) > 0.95
        groups = nnx.to_pure_dict(nnx.state(model, AdapterParam))["layers"]
        norms[alpha] = sorted(sum(float(jnp.sum(x**2)) for x in group.values()) ** 0.5 for group in groups.values())
    assert norms[0.1][0] < 0.1 < 10 < norms[0.0][0]
