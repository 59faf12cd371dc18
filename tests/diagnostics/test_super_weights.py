"""Super weights against a loop, and one that is planted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
find = jax.jit(rj.diagnostics.find_super_weights)
rtn = rj.weights.round_to_nearest


def loop(x, y, flagged, where):
    """``flagged(in_value, out_value, layer)``: whether a layer has a super weight."""
    rows = []
    for layer in range(len(x)):
        places = []
        for values in (x[layer], y[layer]):
            best = (0, 0.0)
            for token in np.ndindex(where.shape):
                for channel, value in enumerate(values[token]):
                    if where[token] and abs(value) > abs(best[1]):
                        best = (channel, value)
            places.append(best)
        (i, a), (o, b) = places
        rows.append((layer, i, o, a, b, flagged(a, b, layer)))
    return [np.array(column) for column in zip(*rows, strict=True)]


def test_equals_the_loop(x64):
    x, y = RNG.normal(size=(5, 2, 3, 4)), RNG.normal(size=(5, 2, 3, 6))
    where = np.array([[True, False, True], [True, True, False]])
    every = np.ones((2, 3), bool)
    for got, want in zip(find(x, y, threshold=1.8), loop(x, y, lambda a, b, _: min(abs(a), abs(b)) > 1.8, every), strict=True):
        np.testing.assert_allclose(got, want)
    _, _, _, a, b, _ = loop(x, y, lambda *_: True, where)
    limits = [1.05 * np.median(np.abs(values)) for values in (a, b)]
    wanted = loop(x, y, lambda a, b, _: abs(a) > limits[0] and abs(b) > limits[1], where)
    got = find(x, y, relative=1.05, where=where)
    for one, want in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, want)
    assert 0 < np.sum(got.flag) < 5 and got.flag.dtype == bool


def test_both_spikes_are_needed_and_signs_are_kept():
    x, y = np.full((3, 4, 2), 0.1, np.float32), np.full((3, 4, 2), 0.1, np.float32)
    x[0, 1, 1], x[1, 2, 0], y[1, 2, 1], y[2, 0, 0] = 60, -80, -90, 70
    got = find(x, y)
    assert got.flag.tolist() == [False, True, False]
    assert (got.in_index[1], got.out_index[1], got.in_value[1], got.out_value[1]) == (0, 1, -80, -90)
    assert not find(x, y, threshold=85.0).flag.any()


def test_several_planted_weights_are_found_one_after_the_other():
    """The recipe of the card: zero the weight that was found, and run again."""
    keys = jax.random.split(jax.random.key(0), 5)
    up, down = (0.2 * jax.random.normal(k, (3, *shape)) for k, shape in zip(keys, ((8, 16), (16, 8)), strict=False))
    up = up.at[:, :, 5].set(3.0)  # the channel that carries the spike
    planted = {(1, 5, 2), (1, 5, 7)}
    for place in planted:
        down = down.at[place].set(100.0)
    x = jnp.abs(jax.random.normal(keys[2], (10, 8)))

    @jax.jit
    def recorded(down):
        inputs = jax.nn.relu(jnp.einsum("td,ldh->lth", x, up))
        return rj.diagnostics.find_super_weights(inputs, jnp.einsum("lth,lhd->ltd", inputs, down), threshold=20.0, relative=None)

    found = set()
    for _ in range(4):
        at = recorded(down)
        if not at.flag.any():
            break
        layer = int(np.argmax(at.flag))
        place = (layer, int(at.in_index[layer]), int(at.out_index[layer]))
        found.add(place)
        down = down.at[place].set(0.0)
    assert found == planted


@pytest.mark.slow
def test_zeroing_the_super_weight_costs_more_than_the_100_next_largest():
    """Digits: a network trained around a planted weight needs it, and needs it restored after rounding to four bits."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images, labels = (images / 16).astype(np.float32), labels.astype(np.int32)
    keys = jax.random.split(jax.random.key(0), 4)
    params = {n: jax.random.normal(k, (64, 64)) / 8 for n, k in zip(("up", "down", "mix", "head"), keys, strict=True)}
    params["head"], params["bias"] = params["head"][:, :10], jnp.zeros(64)
    place = (3, 4)
    params["up"], params["down"] = params["up"].at[:, 3].set(1.0), params["down"].at[place].set(10.0)

    def apply(p, x):
        hidden = jax.nn.relu(x @ p["up"])
        out = hidden @ p["down"]
        return jax.nn.relu(out @ p["mix"] + p["bias"]) @ p["head"], hidden, out

    def loss(p):
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(apply(p, images[:600])[0]), labels[:600, None], 1))

    @jax.jit
    def train(p):
        tx = optax.adam(2e-3)

        def step(carry, _):
            p, state = carry
            updates, state = tx.update(jax.grad(loss)(p), state)
            return (optax.apply_updates(p, updates), state), None

        return jax.lax.scan(step, (p, tx.init(p)), None, length=300)[0][0]

    @jax.jit
    def accuracy(down):
        return jnp.mean(jnp.argmax(apply({**params, "down": down}, images[1200:])[0], -1) == labels[1200:])

    params = train(params)
    down = np.asarray(params["down"])
    _, hidden, out = apply(params, images[:64])
    found = find(hidden[None], out[None], threshold=20.0)
    assert bool(found.flag[0]) and (int(found.in_index[0]), int(found.out_index[0])) == place
    others = np.delete(np.argsort(-np.abs(down).ravel()), 0)[:100]
    without, pruned = down.copy(), down.copy()
    without[place] = 0
    np.put(pruned, others, 0)
    full, one, hundred = (float(accuracy(w)) for w in (down, without, pruned))
    assert full - one > 0.2 > 0.1 > full - hundred, (full, one, hundred)
    plain = rtn(down)
    kept = rj.weights.restore_super(rtn(down, clip="zscore", clip_threshold=9.0), down, [place])
    rest = np.arange(down.size) != np.ravel_multi_index(place, down.shape)
    errors = [np.mean(np.square(np.asarray(w) - down).ravel()[rest]) for w in (plain, kept)]
    assert errors[1] < 0.2 * errors[0] and accuracy(kept) > accuracy(plain) + 0.1, errors
