"""All layers together: in one ResNet and in one vision transformer, in one compiled training step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import regjax as rj

B, H, K, WIDTH = 8, 8, 3, 8
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(B, H, H, 3)), jnp.float32)
LABELS = jax.nn.one_hot(jnp.arange(B) % K, K)
LAYERS = rj.layers


class Head(nnx.Module):
    """What both networks end with: noise on the features, experts for them, and several samples of a noisy last layer."""

    def __init__(self, rngs):
        self.noise, self.product = LAYERS.GaussianNoise(0.1), LAYERS.GaussianNoise(0.1, kind="multiplicative")
        self.dropout, self.nested = LAYERS.Dropout(0.1), LAYERS.NestedDropout(WIDTH, scale=8.0)
        options = {"eom_rate": 0.2, "fom_rate": 0.2, "gate_rate": 0.2, "gating_rate": 0.1, "shared": True}
        self.experts = LAYERS.MixtureOfExperts(WIDTH, 8, 3, gating_mode="expert", **options, rngs=rngs)
        self.gate = nnx.Param(jnp.full((WIDTH, WIDTH), 0.01, jnp.float32))
        self.projector = LAYERS.LadderProjector([WIDTH] * 2, 4, hidden_features=4, last_hidden_features=4, rngs=rngs)
        self.last = LAYERS.MultiSampleDropout(LAYERS.DropConnect(WIDTH, K, 0.2, rngs=rngs), 2, 0.2)

    def __call__(self, x, frozen, masks, keys, training):
        """Logits ``[M, B, K]``, and a scalar of the parts beside them."""
        off = {"deterministic": not training}
        before = x
        x = masks.apply(frozen, x, **off)
        x = self.product(self.noise(x, rngs=next(keys), **off), rngs=next(keys), **off)
        x = self.dropout(x, rngs=next(keys), **off)
        mixed = self.experts(x, rngs=next(keys), **off)
        x = self.nested(x + mixed.y, rngs=next(keys), **off) * LAYERS.binary_mask_ste(self.gate[...]).mean(0)
        extra = mixed.load_balancing + LAYERS.cmr_budget_loss(mixed.gates) + jnp.mean(self.projector([before, x]) ** 2)
        self.last.head.deterministic = not training
        return self.last(x, rngs=next(keys), **off), extra


class Residual(nnx.Module):
    """A convolution of low rank, and blocks, channels and paths that are dropped; masked where pixels are hidden."""

    def __init__(self, rngs):
        self.conv = LAYERS.OrderedConv(WIDTH, WIDTH, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.kernel = nnx.Param(0.1 * jnp.ones((3, 3, WIDTH, WIDTH)))
        self.blocks, self.channels, self.path = LAYERS.DropBlock(0.1, 2), LAYERS.SpatialDropout(0.1), LAYERS.DropPath(0.2)

    def __call__(self, x, visible, keys, training):
        off = {"deterministic": not training}
        branch = nnx.relu(self.norm(self.conv(x, fraction=0.5), use_running_average=not training))
        branch = self.channels(self.blocks(branch, rngs=next(keys), **off), rngs=next(keys), **off)
        branch, seen = LAYERS.masked_conv(branch, visible, self.kernel[...])
        x, seen = LAYERS.masked_residual(x, visible, self.path(branch, rngs=next(keys), **off), seen)
        return x, seen


class ResNet(nnx.Module):
    def __init__(self, rngs):
        self.stem = nnx.Conv(3, WIDTH, (3, 3), rngs=rngs)
        self.first, self.second, self.head = Residual(rngs), Residual(rngs), Head(rngs)

    def __call__(self, images, mix, frozen, masks, keys, training):
        visible = jnp.ones((B, H, H, 1), bool).at[:, 0].set(False)
        x = LAYERS.masked_elementwise(nnx.relu, self.stem(mix(0, images)), visible)
        x, visible = self.first(mix(1, x), visible, keys, training)
        x, visible = LAYERS.masked_max_pool(*self.second(mix(2, x), visible, keys, training), (2, 2), strides=2)
        features = LAYERS.masked_global_avg_pool(x, visible).reshape(B, WIDTH)
        return self.head(features, frozen, masks, keys, training)


class ViT(nnx.Module):
    def __init__(self, rngs):
        self.stem = LAYERS.OrderedDense(4 * 4 * 3, WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs)
        self.up, self.norm = LAYERS.OrderedDense(WIDTH, WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.channels, self.path, self.head = LAYERS.SpatialDropout(0.1), LAYERS.DropPath(0.2, per="batch"), Head(rngs)

    def __call__(self, images, mix, frozen, masks, keys, training):
        off = {"deterministic": not training}
        x = mix(1, self.stem(rj.inputs.patchify(mix(0, images), 4), fraction=0.7))
        x = x + self.path(self.attention(self.norm(x)), rngs=next(keys), **off)
        x = self.channels(mix(2, x + nnx.gelu(self.up(x))), rngs=next(keys), **off)
        return self.head(x.mean(1), frozen, masks, keys, training)


@pytest.mark.slow
@pytest.mark.parametrize("network", [ResNet, ViT])
def test_all_layers_in_one_step(network):
    masks = LAYERS.frozen_mask_dropout((B, WIDTH), rate=0.1)
    graph, params, state = nnx.split(network(nnx.Rngs(0)), nnx.Param, ...)
    tx = optax.sgd(0.05)

    def forward(params, state, frozen, key, training):
        model = nnx.merge(graph, params, jax.tree.map(lambda x: x, state))
        mix_key, key = jax.random.split(key)
        lams, lam, partner = rj.inputs.manifold_mixup_weights(mix_key, B, alpha=2.0 if training else 0.0)
        mix = lambda place, x: LAYERS.mix_features(x, lam=lams[place], partner=partner)
        labels = LAYERS.mix_features(LABELS, lam=lam, partner=partner)
        logits, extra = model(IMAGES, mix, frozen, masks, iter(jax.random.split(key, 16)), training)
        loss = LAYERS.multi_sample_loss(lambda z, y: rj.losses.label_smoothing(z, y, alpha=0.0))(logits, labels)
        penalty = rj.weights.low_rank_group_lasso(params)
        return loss.mean() + 0.01 * extra + 1e-3 * penalty, (logits, nnx.state(model, nnx.Not(nnx.Param)))

    @jax.jit
    def step(carry, key):
        params, state, opt_state, frozen = carry
        frozen = masks.refresh(frozen, key, when=jnp.arange(B) % 2 == 0)
        (loss, (_, state)), grads = jax.value_and_grad(forward, has_aux=True)(params, state, frozen, key, True)
        updates, opt_state = tx.update(grads, opt_state)
        return (optax.apply_updates(params, updates), state, opt_state, frozen), (loss, grads)

    carry, losses = (params, state, tx.init(params), masks.init(jax.random.key(1))), []
    moved = jax.tree.map(lambda x: False, params)
    for i in range(4):
        carry, (loss, grads) = step(carry, jax.random.key(i))
        moved = jax.tree.map(lambda seen, g: seen or bool(np.any(g)), moved, grads)
        losses.append(float(loss))
    assert np.isfinite(losses).all() and step._cache_size() == 1
    assert not [jax.tree_util.keystr(path) for path, seen in jax.tree_util.tree_leaves_with_path(moved) if not seen]

    test = jax.jit(lambda key: forward(carry[0], carry[1], carry[3], key, False)[1][0])
    first, second = test(jax.random.key(2)), test(jax.random.key(3))
    assert first.shape == (1, B, K)
    np.testing.assert_array_equal(first, second)  # no key matters in test mode
