"""Opposing signals: the chosen examples, cosines of gradients, group means, and the toy problem at the edge of stability."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

d = rj.diagnostics
RNG = np.random.default_rng(0)


def test_opposing_examples_are_the_ends_of_the_sorted_changes():
    before, after = RNG.normal(size=(2, 30)).astype(np.float32)
    after[7], after[9] = after[12] + before[7] - before[12], np.inf
    found = jax.jit(d.opposing_examples, static_argnames="top_k")(before, after, top_k=12)
    change = after - before
    np.testing.assert_allclose(change[found.rising], np.sort(change)[::-1][:12])
    np.testing.assert_allclose(change[found.falling], np.sort(change)[:12])
    assert found.rising[0] == 9 and len(set(found.rising.tolist())) == 12
    tied = d.opposing_examples(jnp.zeros(3), jnp.zeros(3), top_k=3)
    assert tied.rising.tolist() == tied.falling.tolist() == [0, 1, 2]


def test_two_outliers_oppose_each_other(x64):
    """(+v, y = 1) and (-v, y = 1): their gradients of a linear weight are opposite."""
    v = jnp.asarray(RNG.normal(size=4))
    gradient = jax.grad(lambda p, x: (x @ p["w"] - 1) ** 2 / 2)
    at = {"w": jnp.zeros(4), "steps": jnp.zeros(2)}
    opposition = jax.jit(d.gradient_opposition)
    assert float(opposition(gradient(at, v), gradient(at, -v))) == pytest.approx(-1, abs=1e-12)
    a, b = RNG.normal(size=(2, 5)), RNG.normal(size=(2, 5))
    tree = lambda g: {"a": g[0], "b": [g[1], 3]}
    want = np.sum(a * b) / np.sqrt(np.sum(a**2) * np.sum(b**2))
    assert float(opposition(tree(a), tree(b))) == pytest.approx(want, rel=1e-12)
    assert opposition(tree(0 * a), tree(b)) == 0 and d.gradient_opposition({}, {}) == 0
    assert float(opposition(1e200 * a, -1e-200 * a)) == pytest.approx(-1)


def test_group_losses_are_kept_in_order():
    memory = d.track_group_losses(num_groups=3, num_steps=3)
    state, apply = memory.init(), jax.jit(memory.apply)
    groups, history = np.array([0, 2, -1, 0, 5]), []
    for t in range(5):
        losses = RNG.normal(size=5).astype(np.float32)
        losses[2] = np.nan  # counts nowhere
        means, state = apply(state, losses, groups)
        history.append([(losses[0] + losses[3]) / 2, 0, losses[1]])
        np.testing.assert_allclose(means, history[-1], rtol=1e-6)
        assert state.num_seen == t + 1
    np.testing.assert_allclose(state.losses, history[-3:], rtol=1e-6)


def test_toy_has_the_moments_it_states():
    toy = jax.jit(lambda key: d.opposing_signals_toy(key, 20_000, 4, rate=0.1, scale=2.0, weak=0.5, noise=0.3))(jax.random.key(0))
    x, y, groups = map(np.asarray, toy)
    error = 4 / np.sqrt(20_000)
    assert np.mean(groups >= 0) == pytest.approx(0.1, abs=0.3 * error)
    assert np.mean(groups[groups >= 0]) == pytest.approx(0.5, abs=0.5 * error / np.sqrt(0.1))
    np.testing.assert_allclose(x[:, 3], np.choose(groups + 1, [0, 2 / np.sqrt(0.1), -2 / np.sqrt(0.1)]), rtol=1e-6)
    np.testing.assert_allclose(np.cov(x[:, :3].T), np.eye(3), atol=2 * error)
    rest = y - x[:, :3].sum(1) / np.sqrt(3) - 0.5 * np.abs(x[:, 3])
    assert rest.std() == pytest.approx(0.3, rel=error) and rest.mean() == pytest.approx(0, abs=0.3 * error)


@pytest.mark.slow
def test_outliers_oscillate_against_each_other_at_the_edge_of_stability():
    """A two-layer linear network under gradient descent with large and small steps, with and without the outliers."""
    toy = d.opposing_signals_toy(jax.random.key(0), 400, 10, rate=0.1, scale=2.0, weak=0.5)
    ka, kb = jax.random.split(jax.random.key(1))
    params = {"a": 0.5 * jax.random.normal(ka, (10, 5)) / np.sqrt(10), "b": 0.5 * jax.random.normal(kb, (5,))}
    memory = d.track_group_losses(num_groups=2, num_steps=1)

    def per_example(p):
        return (toy.inputs @ p["a"] @ p["b"] - toy.targets) ** 2 / 2

    @jax.jit
    def train(rate, kept):
        loss = lambda p: jnp.sum(jnp.where(kept, per_example(p), 0)) / jnp.sum(kept)

        def step(carry, _):
            p, before = carry
            losses = per_example(p)
            found = d.opposing_examples(before, losses, top_k=10)
            # How many of the rising and of the falling examples are outliers, and of the first group.
            groups = [toy.groups[found.rising], toy.groups[found.falling]]
            means, _ = memory.apply(memory.init(), losses, toy.groups)
            top = d.top_eigenvalue(d.hessian_matvec(loss, p), jax.tree.map(jnp.ones_like, p), num_steps=6).value
            p_next = jax.tree.map(lambda w, g: w - rate * g, p, jax.grad(loss)(p))
            return (p_next, losses), (loss(p), top, means, groups)

        return jax.lax.scan(step, (params, per_example(params)), length=60)[1]

    everything = jnp.ones(400, bool)
    loss, top, means, (rising, falling) = train(0.35, everything)
    changes = np.diff(means[10:60], axis=0)
    assert top[0] < 2 / 0.35 < top[10:40].max(), "the curvature rises to the edge"
    assert np.corrcoef(changes.T)[0, 1] < -0.99 and np.all(np.sign(changes[1:]) == -np.sign(changes[:-1]))
    assert loss[10:60].std() < 0.05 * means[10:60, 0].std(), "the total stands still while the groups swing"
    # In each step of the swing all that rise are of one group, all that fall of the other.
    one, other = rising[11:40], falling[11:40]
    assert np.all(one == one[:, :1]) and np.all(other == other[:, :1]) and np.all(one[:, 0] + other[:, 0] == 1)
    slow = np.diff(train(0.03, everything)[2][10:60], axis=0)
    assert np.mean(np.sign(slow[1:]) != np.sign(slow[:-1])) < 0.1, "a gradient flow does not oscillate"
    assert train(0.35, toy.groups < 0)[1].max() < 0.5 * 2 / 0.35, "without the outliers nothing is near the edge"
