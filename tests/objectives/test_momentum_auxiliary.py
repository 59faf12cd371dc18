"""The momentum auxiliary network: its local loss and average by loops, and where its gradients go."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.objectives.problems import close
from tests.references import log_softmax, soft_labels

momentum_auxiliary, local_loss_weights = rj.objectives.momentum_auxiliary, rj.objectives.local_loss_weights
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(5, 3)), RNG.integers(0, 4, 5)
IMAGES = RNG.random((5, 2))
NEIGHBOUR = {"kernel": RNG.normal(size=(3, 6)), "bias": RNG.normal(size=6), "count": np.array(3)}
HEAD, DECODER = RNG.normal(size=(6, 4)), RNG.normal(size=(6, 2))


def layer(params, x):
    return jnp.tanh(x @ params["kernel"] + params["bias"])


def layer_reference(params, x):
    return np.tanh(x @ params["kernel"] + params["bias"])


def test_the_local_loss_and_where_its_gradients_go(x64):
    man = momentum_auxiliary()
    learned = jax.tree.map(lambda x: x * 2, NEIGHBOUR)
    soft = soft_labels(RNG, 5, 4)

    @jax.jit
    def run(floats, ema, labels):
        def loss(floats, ema):
            state = rj.objectives.MomentumAuxiliaryState({**floats["learned"], "count": learned["count"]}, ema)
            aux_head, decoder = (lambda y: y @ floats["head"]), (lambda y: y @ floats["decoder"])
            local = {"weight_ce": 0.5, "decoder": decoder, "images": IMAGES, "weight_rec": 5.0}
            features = jnp.sin(floats["block"])
            return man.apply(state, layer, aux_head, features, labels, **local), man.apply(
                state, layer, aux_head, features, soft, weight_ce=2.0
            )

        both = jax.value_and_grad(lambda *a: loss(*a)[0], (0, 1), allow_int=True)
        return both(floats, ema), loss(floats, ema)[1]

    floats = {"learned": {k: learned[k] for k in ("kernel", "bias")}, "head": HEAD, "decoder": DECODER, "block": X}
    (value, (slopes, by_ema)), plain = run(floats, NEIGHBOUR, Y)
    y = layer_reference(learned, np.sin(X)) + layer_reference(NEIGHBOUR, np.sin(X))
    log_p = [log_softmax(row @ HEAD) for row in y]
    p = 1 / (1 + np.exp(-(y @ DECODER)))
    bce = -np.mean(IMAGES * np.log(p) + (1 - IMAGES) * np.log(1 - p))
    np.testing.assert_allclose(value, -0.5 * np.mean([log_p[i][Y[i]] for i in range(5)]) + 5 * bce, rtol=1e-12)
    np.testing.assert_allclose(plain, -2 * np.mean([soft[i] @ log_p[i] for i in range(5)]), rtol=1e-12)
    assert not by_ema["kernel"].any() and not by_ema["bias"].any()
    # The gradients, written out: through both layers to the block, through the learned one alone to its parameters.
    to_y = 0.5 / 5 * (np.exp(log_p) - np.eye(4)[Y]) @ HEAD.T + 5 * (p - IMAGES) / IMAGES.size @ DECODER.T
    outs = {name: layer_reference(w, np.sin(X)) for name, w in (("learned", learned), ("ema", NEIGHBOUR))}
    inner = {name: to_y * (1 - out**2) for name, out in outs.items()}
    by_block = (inner["learned"] @ learned["kernel"].T + inner["ema"] @ NEIGHBOUR["kernel"].T) * np.cos(X)
    np.testing.assert_allclose(slopes["block"], by_block, rtol=1e-10)
    np.testing.assert_allclose(slopes["learned"]["kernel"], np.sin(X).T @ inner["learned"], rtol=1e-10)
    np.testing.assert_allclose(slopes["learned"]["bias"], inner["learned"].sum(0), rtol=1e-10)
    np.testing.assert_allclose(slopes["head"], 0.5 / 5 * y.T @ (np.exp(log_p) - np.eye(4)[Y]), rtol=1e-10)


def test_the_average(x64):
    moved = {"kernel": NEIGHBOUR["kernel"] + 1, "bias": NEIGHBOUR["bias"] - 2, "count": np.array(4)}
    update = jax.jit(lambda state, new, decay: momentum_auxiliary(decay=decay).update(state, new))
    state = momentum_auxiliary().init(NEIGHBOUR)
    close(state.learned, state.ema, rtol=0)
    once = update(state, moved, 0.9)
    twice = update(once, NEIGHBOUR, 0.9)
    np.testing.assert_allclose(once.ema["kernel"], NEIGHBOUR["kernel"] + 0.1, rtol=1e-12)
    np.testing.assert_allclose(twice.ema["bias"], NEIGHBOUR["bias"] - 0.18, rtol=1e-12)
    assert once.ema["count"] == 4
    close(once.learned, NEIGHBOUR, rtol=0)
    for decay, want in ((0.0, moved), (1.0, {**NEIGHBOUR, "count": moved["count"]})):
        broken = state._replace(ema={**state.ema, "bias": np.full(6, np.nan)}) if decay == 0 else state
        close(update(broken, moved, decay).ema, want, rtol=0)
    scheduled = momentum_auxiliary(decay=lambda step: step / 10)
    close(scheduled.update(state, moved, step=9).ema, once.ema, rtol=1e-12)
    # All boundaries at once, as a list.
    states = momentum_auxiliary(decay=0.9).init([NEIGHBOUR, NEIGHBOUR])
    close(momentum_auxiliary(decay=0.9).update(states, [moved, NEIGHBOUR]).ema, [once.ema, NEIGHBOUR], rtol=1e-12)


def test_low_precision_averages_move():
    man = momentum_auxiliary(decay=0.999)
    state = man.init(jnp.ones(2, jnp.bfloat16))
    assert state.learned.dtype == jnp.bfloat16 and state.ema.dtype == jnp.float32
    np.testing.assert_allclose(man.update(state, jnp.zeros(2, jnp.bfloat16)).ema, 0.999, rtol=1e-6)


def test_weights_shrink_with_depth():
    got = [local_loss_weights(k, 5) for k in range(4)]
    np.testing.assert_allclose(got, [(5, 0.5), (10 / 3, 1 / 3), (5 / 3, 1 / 6), (0, 0)], rtol=1e-12)
    assert local_loss_weights(0, 2) == (5.0, 0.5)
    assert local_loss_weights(1, 3, reconstruction=(1, 2), cross_entropy=[3, 4]) == (2.0, 4.0)
