"""Block rules against loops in NumPy, the optimiser of one block, and the order of the rules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
G = np.array([1.0, -3.0, 2.0, 2.0])
PAIRS = np.array([0, 0, 1, 1])
select, coordinates, block_coordinate = rj.gradients.select_block, rj.gradients.select_coordinates, rj.gradients.block_coordinate


def reference(g, blocks, rule, score, d, by_block, hessian):
    """The scores, summed entry by entry."""
    scores = np.zeros(blocks.max() + 1)
    for b in range(len(scores)):
        members = [i for i in range(len(g)) if blocks[i] == b]
        if rule == "gsq":
            part = hessian[np.ix_(members, members)] + 1e-10 * np.eye(len(members))
            scores[b] = g[members] @ np.linalg.inv(part) @ g[members]
            continue
        for i in members:
            over = {"gs": 1.0, "gsl": by_block[b], "gsd": d[i]}[rule]
            scores[b] += g[i] ** 2 / over if score == "l2" else abs(g[i]) / np.sqrt(over)
    return scores


def test_choices_equal_their_reference(x64):
    blocks = np.array([0, 1, 2, 0, 1, 3, 3, 3, 2])
    gs = RNG.normal(size=(60, 9)) * 10.0 ** RNG.integers(-1, 2, size=(60, 1))
    d, by_block = 10 ** RNG.normal(size=(60, 9)), 10 ** RNG.normal(size=(60, 4))
    roots = RNG.normal(size=(60, 9, 12))
    hessians = roots @ roots.transpose(0, 2, 1)
    cases = [(rule, score) for rule in ("gs", "gsl", "gsd") for score in ("l2", "l1")] + [("gsq", "l2")]

    @jax.jit
    @jax.vmap
    def run(g, d, by_block, hessian):
        bounds = dict(lipschitz=d, block_lipschitz=by_block, hessian_bound=hessian)
        chosen = [select(g, rule=rule, score=score, blocks=blocks, **bounds) for rule, score in cases]
        top = [coordinates(g, block_size=4), coordinates(g, block_size=4, rule="gsd", lipschitz=d)]
        return jnp.stack(chosen), jnp.stack(top)

    chosen, top = run(gs, d, by_block, hessians)
    for k in range(60):
        want = [np.argmax(reference(gs[k], blocks, *case, d[k], by_block[k], hessians[k])) for case in cases]
        np.testing.assert_array_equal(chosen[k], want)
        for got, over in zip(top[k], (np.ones(9), d[k]), strict=True):
            np.testing.assert_array_equal(got, np.argsort(-(gs[k] ** 2) / over)[:4])
    assert len(set(chosen.ravel().tolist())) == 4


def test_published_values_ties_and_edges():
    assert int(select(G, blocks=PAIRS)) == 0  # 10 against 8
    assert int(select(G, rule="gsl", blocks=PAIRS, block_lipschitz=np.array([20.0, 1.0]))) == 1  # 0.5 against 8
    assert int(select(G, rule="gsl", blocks=PAIRS, block_lipschitz=np.array([0.0, 1.0]))) == 1  # a block without curvature
    assert int(select(G, blocks=0)) == 0
    assert int(select(np.ones(4), blocks=PAIRS)) == 0 and int(select(np.zeros(4), blocks=PAIRS)) == 0
    assert coordinates(np.array([1.0, 2.0, -2.0, 2.0]), block_size=2).tolist() == [1, 2]
    assert coordinates(G, block_size=2, rule="gsd", lipschitz=np.array([1.0, 0.0, 8.0, 2.0])).tolist() == [3, 0]
    # Squares that underflow in float32 still order the blocks.
    assert int(select(jnp.array([1e-30, 2e-30]), blocks=np.array([0, 1]))) == 1
    tree = {"a": jnp.ones(2), "count": jnp.ones(3, int), "z": jnp.full(2, 2.0)}
    assert int(select(tree)) == 1  # numbered among floating leaves
    assert int(select(tree, rule="gsd", lipschitz={"a": 1.0, "count": 1.0, "z": jnp.array([9.0, 9.0])})) == 0
    assert int(select({"a": jnp.ones(2), "b": {"c": jnp.ones(2), "d": 2 * jnp.ones(2)}}, blocks={"a": 1, "b": 0})) == 0


def test_the_matrix_step_falls_by_half_its_score(x64):
    root = RNG.normal(size=(6, 9))
    hessian, centre = jnp.asarray(root @ root.T), RNG.normal(size=6)
    blocks = np.array([0, 1, 1, 2, 0, 2])
    value = lambda x: 0.5 * (x - centre) @ hessian @ (x - centre)

    @jax.jit
    def step(x):
        g = hessian @ (x - centre)
        b = select(g, rule="gsq", blocks=blocks, hessian_bound=hessian)
        rows = jnp.argsort(blocks != b, stable=True)[:2]
        part = hessian[rows[:, None], rows[None, :]]
        d = -jnp.linalg.solve(part, g[rows])
        return x.at[rows].add(d), -g[rows] @ d / 2

    x = np.zeros(6)
    for _ in range(5):
        new, promised = step(x)
        np.testing.assert_allclose(value(x) - value(np.asarray(new)), promised, rtol=1e-6)
        x = np.asarray(new)


PARAMS = {"a": jnp.array([1.0, -1.0]), "b": {"c": jnp.array([2.0]), "d": jnp.array([[0.5, 0.5]])}}
CURVATURE = {"a": jnp.array([1.0, 4.0]), "b": {"c": jnp.array([10.0]), "d": jnp.array([[0.5, 2.0]])}}


def run(tx, steps, params=PARAMS):
    """The weights and the blocks on a separable quadratic of the given curvatures, and the last state."""

    def step(carry, _):
        params, state = carry
        grads = jax.tree.map(lambda p, h: h * p, params, CURVATURE)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state.block)

    (_, state), (path, blocks) = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return path, blocks, state


def test_the_optimiser_moves_one_block():
    lipschitz = jax.tree.map(jnp.asarray, CURVATURE)

    @jax.jit
    def runs():
        # Newton's step in each coordinate: one sweep of the blocks solves a separable quadratic.
        newton = optax.stateless(lambda g, p: jax.tree.map(lambda g, p: -p if g.size else g, g, p))
        return (
            run(block_coordinate(newton, rule="cyclic"), 3),
            run(block_coordinate(optax.sgd(0.05), rule="gs"), 12),
            run(block_coordinate(optax.sgd(0.05), rule="gsl", lipschitz=jnp.array([4.0, 10.0, 2.0])), 12),
            run(block_coordinate(optax.sgd(0.05), rule="gsd", lipschitz=lipschitz, score="l1"), 12),
            run(block_coordinate(optax.sgd(0.05), rule="random", seed=3), 300),
            run(block_coordinate(optax.adam(0.1), blocks=0), 5)[0],
        )

    cyclic, greedy, scaled, coordinatewise, random, whole = runs()
    assert cyclic[1].tolist() == [0, 1, 2] and not any(leaf[-1].any() for leaf in jax.tree.leaves(cyclic[0]))
    for (path, blocks, _), rule in ((greedy, "gs"), (scaled, "gsl"), (coordinatewise, "gsd")):
        leaves = [np.asarray(p) for p in jax.tree.leaves(PARAMS)]
        for t, b in enumerate(blocks):
            grads = [h * p for h, p in zip(jax.tree.leaves(CURVATURE), leaves, strict=True)]
            scores = {
                "gs": [np.sum(g**2) for g in grads],
                "gsl": [np.sum(g**2) / bound for g, bound in zip(grads, (4.0, 10.0, 2.0), strict=True)],
                "gsd": [np.sum(abs(g) / np.sqrt(h)) for g, h in zip(grads, jax.tree.leaves(CURVATURE), strict=True)],
            }[rule]
            assert int(b) == np.argmax(scores), (rule, t)
            leaves[int(b)] = leaves[int(b)] - 0.05 * grads[int(b)]
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), [x[t] for x in jax.tree.leaves(path)], leaves)
    counts = np.bincount(random[1], minlength=3)
    assert counts.sum() == 300 and np.all(np.abs(counts - 100) < 5 * np.sqrt(300 * 2 / 9))
    plain = jax.jit(lambda: trajectory_of(optax.adam(0.1), 5))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), whole, plain)


def trajectory_of(tx, steps):
    """The weights of an ordinary optimiser on the same quadratic."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.tree.map(lambda p, h: h * p, params, CURVATURE), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (PARAMS, tx.init(PARAMS)), length=steps)[1]


def test_the_state_of_other_blocks_stays():
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    frozen = block_coordinate(optax.adam(0.1), rule="cyclic", blocks={"a": 0, "b": 1})
    running = block_coordinate(optax.adam(0.1), rule="cyclic", blocks={"a": 0, "b": 1}, freeze_state=False)

    @jax.jit
    def three():
        out = []
        for tx in (frozen, running):
            state = tx.init(PARAMS)
            for _ in range(3):
                updates, state = tx.update(grads, state, PARAMS)
            out.append((updates, state))
        return out

    (moved, apart), (also, together) = three()
    assert [int(s[0].count) for s in apart.base] == [2, 1] and int(together.base[0][0].count) == 3
    assert len(apart.base) == 2 and len(together.base) == 1
    np.testing.assert_allclose(apart.base[0][0].mu["a"], 1 - 0.9**2, rtol=1e-6)
    np.testing.assert_allclose(apart.base[1][0].mu["b"]["c"], 0.1, rtol=1e-6)
    np.testing.assert_allclose(together.base[0][0].mu["b"]["c"], 1 - 0.9**3, rtol=1e-6)
    for updates in (moved, also):
        np.testing.assert_allclose(updates["a"], -0.1, rtol=1e-4)
        assert not updates["b"]["c"].any() and not updates["b"]["d"].any()


def test_wrapped_in_optax_and_absent_updates():
    grads = jax.tree.map(lambda p, h: h * p, PARAMS, CURVATURE)
    make = lambda **given: block_coordinate(optax.sgd(0.1, momentum=0.9), **given)
    once = lambda tx, grads=grads: tx.update(grads, tx.init(PARAMS), PARAMS)[0]
    want = once(make())
    assert want["b"]["c"].any() and not want["a"].any()
    injected = optax.inject_hyperparams(block_coordinate)(optax.sgd(0.1, momentum=0.9), rule="random", seed=3)
    jax.tree.map(np.testing.assert_array_equal, once(injected), once(make(rule="random", seed=3)))
    rest = once(make(), {**grads, "b": {"c": None, "d": grads["b"]["d"]}})
    assert rest["b"]["c"] is None
    np.testing.assert_allclose(rest["a"], -0.1 * grads["a"], rtol=1e-6)
    counted = {**PARAMS, "count": jnp.arange(3)}
    updates = make().update({**grads, "count": jnp.arange(3)}, make().init(counted), counted)[0]
    np.testing.assert_array_equal(updates["count"], jnp.arange(3))


@pytest.mark.slow
def test_the_order_of_the_rules_on_badly_scaled_logistic_regression(x64):
    """Each rule with the step that it is made for: the more curvature a rule knows, the lower the objective."""
    rng = np.random.default_rng(0)
    n, d = 200, 100
    features = rng.normal(size=(n, d)) * 10 ** rng.uniform(-1, 1, size=d)
    features += 0.5 * features[:, rng.permutation(d)]
    labels = np.sign(features @ rng.normal(size=d) + 2 * rng.normal(size=n))
    hessian = features.T @ features / (4 * n) + 1e-3 * np.eye(d)
    members = np.arange(d).reshape(20, 5)
    blocks = np.repeat(np.arange(20), 5)
    parts = hessian[members[:, :, None], members[:, None, :]]
    bound = np.abs(parts).sum(2).ravel()  # row sums within the block
    by_block = np.linalg.eigvalsh(parts)[:, -1]

    def value(x):
        return jnp.mean(jnp.logaddexp(0, -labels * (features @ x))) + 0.5e-3 * x @ x

    def run(rule):
        def step(x, t):
            g = jax.grad(value)(x)
            if rule == "random":
                b = jax.random.randint(jax.random.fold_in(jax.random.key(0), t), (), 0, 20)
            else:
                options = dict(lipschitz=bound, block_lipschitz=by_block, hessian_bound=hessian)
                b = select(g, rule=rule, blocks=blocks, **options)
            rows = jnp.asarray(members)[b]
            if rule == "gsq":
                move = jnp.linalg.solve(jnp.asarray(parts)[b], g[rows])
            elif rule == "gsd":
                move = g[rows] / jnp.asarray(bound)[rows]
            else:
                move = g[rows] / jnp.asarray(by_block)[b]
            x = x.at[rows].add(-move)
            return x, value(x)

        return jax.lax.scan(step, jnp.zeros(d), jnp.arange(400))[1]

    rules = ("gsq", "gsd", "gsl", "gs", "random")
    values = {rule: np.asarray(v) for rule, v in zip(rules, jax.jit(lambda: [run(rule) for rule in rules])(), strict=True)}
    gaps = {rule: v[[99, 399]] for rule, v in values.items()}
    # At random is no worse than GS in the long run; the rules that know the curvature stay ahead of both.
    for better, worse in (("gsq", "gsd"), ("gsd", "gsl"), ("gsl", "gs")):
        assert np.all(gaps[better] < 0.95 * gaps[worse]), (better, worse)
    assert gaps["gs"][0] < 0.95 * gaps["random"][0]
