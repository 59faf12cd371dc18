"""Attacks against loops in NumPy and closed forms, what training on them differentiates, free training, and the evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from tests.objectives.problems import close, same, step_flops

o = rj.objectives
RNG = np.random.default_rng(0)
PARAMS = {"hidden": RNG.normal(size=(6, 5)), "out": RNG.normal(size=(5, 3))}
X = RNG.uniform(0, 1, size=(7, 6))
Y = RNG.integers(0, 3, size=7)
KEY = jax.random.key(0)


def logits(params, x):
    return jnp.tanh(x @ params["hidden"]) @ params["out"]


def loss(params, x, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), labels).mean()


def reference_gradient(x, label):
    """The gradient of one example's cross-entropy by its input."""
    h = np.tanh(x @ PARAMS["hidden"])
    z = h @ PARAMS["out"]
    p = np.exp(z - z.max())
    p /= p.sum()
    p[label] -= 1
    return PARAMS["hidden"] @ ((PARAMS["out"] @ p) * (1 - h**2))


def reference_pgd(x, labels, start, epsilon, step, steps, norm):
    out = []
    for i in range(len(x)):
        delta = start[i].copy()
        for t in range(steps + 1):  # the start is projected as the iterates are
            if t:
                g = reference_gradient(x[i] + delta, labels[i])
                delta = delta + step * (np.sign(g) if norm == "linf" else g / np.sqrt((g**2).sum()))
            if norm == "linf":
                delta = np.clip(delta, -epsilon, epsilon)
            delta = np.clip(x[i] + delta, 0, 1) - x[i]
            if norm == "l2":
                delta = delta * min(1, epsilon / max(np.sqrt((delta**2).sum()), 1e-300))
        out.append(x[i] + delta)
    return np.array(out)


@pytest.mark.parametrize(("norm", "epsilon", "step"), [("linf", 0.2, 0.07), ("l2", 0.5, 0.2)])
def test_pgd_equals_its_loop(x64, norm, epsilon, step):
    start = RNG.uniform(-0.3, 0.3, size=X.shape)

    @jax.jit
    def attacked(params, x, labels, start, epsilon, step):
        settings = dict(epsilon=epsilon, step_size=step, norm=norm)
        return [o.pgd_attack(loss, params, x, labels, num_steps=n, delta_init=start, **settings) for n in (0, 1, 5)]

    for got, steps in zip(attacked(PARAMS, X, Y, start, epsilon, step), (0, 1, 5), strict=True):
        close(got, reference_pgd(X, Y, start, epsilon, step, steps, norm), rtol=1e-11)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_standardised_inputs_with_arrays_are_the_attack_on_pixels(x64, norm):
    mean, std = np.linspace(0.2, 0.7, 6), np.linspace(0.1, 2.0, 6)
    standardised = lambda params, x, labels: loss(params, x * std + mean, labels)
    settings = dict(num_steps=4, norm=norm)
    want = o.pgd_attack(loss, PARAMS, X, Y, epsilon=0.3, step_size=0.1, **settings)
    per_channel = dict(epsilon=0.3 / std, step_size=0.1 / std, low=-mean / std, high=(1 - mean) / std)
    got = o.pgd_attack(standardised, PARAMS, (X - mean) / std, Y, **per_channel, **settings)
    close(got * std + mean, want, rtol=1e-10)
    # A radius of 0 holds a channel fixed.
    fixed = o.pgd_attack(loss, PARAMS, X, Y, epsilon=np.array([0.3, 0, 0.3, 0, 0.3, 0.3]), step_size=0.1, key=KEY, **settings)
    moved = np.abs(np.asarray(fixed) - X).max(0) > 0
    np.testing.assert_array_equal(moved, [True, False, True, False, True, True])


def test_linear_margin(x64):
    """The margin of a linear classifier falls by epsilon times the dual norm of its weights."""
    w, x = RNG.normal(size=6), 0.5 + 0.1 * RNG.normal(size=(4, 6))
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    margin_loss = lambda w, x, y: jnp.sum(jnp.logaddexp(0.0, -y * (x @ w)))
    margin = lambda x: signs * (np.asarray(x) @ w)
    fgsm = o.fgsm_attack(margin_loss, w, x, signs, epsilon=0.1)
    close(fgsm - x, -0.1 * signs[:, None] * np.sign(w), rtol=1e-12)
    close(margin(x) - margin(fgsm), np.full(4, 0.1 * np.abs(w).sum()), rtol=1e-12)
    same(fgsm, o.pgd_attack(margin_loss, w, x, signs, epsilon=0.1, step_size=0.1, num_steps=1))
    l2 = o.pgd_attack(margin_loss, w, x, signs, epsilon=0.1, step_size=0.2, num_steps=1, norm="l2")
    close(margin(x) - margin(l2), np.full(4, 0.1 * np.sqrt((w**2).sum())), rtol=1e-12)


def test_perturbations_stay_in_ball_and_box():
    x = jnp.asarray(RNG.uniform(-0.5, 1.5, size=(50, 6)), jnp.float32)
    labels = jnp.zeros(50, int)
    params = jax.tree.map(jnp.float32, PARAMS)
    settings = dict(epsilon=0.25, key=KEY)

    @jax.jit
    def attacked(x):
        linf = o.pgd_attack(loss, params, x, labels, step_size=0.1, num_steps=3, **settings)
        l2 = o.pgd_attack(loss, params, x, labels, step_size=0.1, num_steps=3, norm="l2", **settings)
        zero = [o.pgd_attack(loss, params, x, labels, epsilon=0.0, key=KEY, norm=norm) for norm in ("linf", "l2")]
        still = o.pgd_attack(loss, params, x, labels, num_steps=0)
        free = o.pgd_attack(loss, params, x, labels, step_size=0.1, num_steps=3, low=None, high=None, **settings)
        return (
            linf,
            l2,
            [o.fgsm_attack(loss, params, x, labels, method=m, **settings) for m in ("fgsm_rs", "n_fgsm")],
            [
                *zero,
                still,
            ],
            free,
        )

    linf, l2, (rs, n), unmoved, free = attacked(x)
    for same_as_x in unmoved:
        np.testing.assert_array_equal(same_as_x, x)
    for moved, most in ((linf, 0.25), (rs, 0.25), (n, 0.75), (free, 0.25)):
        assert 0 < np.abs(moved - x).max() <= most + 1e-6
    assert np.linalg.norm(l2 - x, axis=-1).max() <= 0.25 + 1e-6
    inside = (x >= 0) & (x <= 1)
    for moved in (linf, l2, rs, n):
        assert np.all((moved >= 0) & (moved <= 1) | ~inside)
        # An input outside the box is never taken further away.
        assert np.all(np.abs(moved - 0.5) <= np.maximum(np.abs(x - 0.5), 0.5) + 1e-6)
    assert np.any((np.asarray(free) < 0) & np.asarray(inside))


def test_random_starts_of_the_single_steps():
    x, w = jnp.full((4000, 5), 0.5), jnp.array([1.0, -1.0, 1.0, -1.0, 1.0])
    linear = lambda w, x, labels: jnp.sum(x @ w)

    @jax.jit
    def drawn(x):
        steps = [o.fgsm_attack(linear, w, x, None, epsilon=0.1, method=m, key=KEY) for m in ("fgsm_rs", "n_fgsm")]
        return [(at - x) / (0.1 * w) for at in (*steps, o.pgd_attack(linear, w, x, None, epsilon=0.1, num_steps=0, key=KEY))]

    rs, n, start = map(np.asarray, drawn(x))
    size = rs.size
    # From u uniform on [-1, 1]: min(1, u + 5 / 4) is 1 with probability 5/8, else uniform on [1/4, 1]; and 2 u + 1.
    assert rs.min() >= 0.25 - 1e-5 and rs.max() <= 1 + 1e-5
    assert abs(np.mean(rs > 1 - 1e-5) - 0.625) < 4 * np.sqrt(0.625 * 0.375 / size)
    assert abs(rs[rs < 1 - 1e-5].mean() - 0.625) < 4 * np.sqrt(0.75**2 / 12 / (0.375 * size))
    assert abs(n.mean() - 1) < 4 * np.sqrt(4 / 3 / size) and abs(n.var() - 4 / 3) < 0.05
    assert n.min() >= -1 - 1e-5 and n.max() <= 3 + 1e-5
    assert abs(start.mean()) < 4 * np.sqrt(1 / 3 / size) and abs(start.var() - 1 / 3) < 0.02


def test_adversarial_differentiates_the_loss_at_the_example_alone(x64):
    params = jax.tree.map(jnp.asarray, PARAMS)

    def noisy(params, x, labels, key, scale=1.0):
        x = x * jax.random.bernoulli(key, 0.8, x.shape) * scale
        return loss(params, x, labels), x.mean()

    @jax.jit
    def both(params, step):
        settings = dict(epsilon=lambda step: 0.01 * step, step_size=lambda step: 0.004 * step, num_steps=2, has_aux=True)
        robust = o.adversarial(noisy, **settings)
        got = jax.value_and_grad(robust, has_aux=True)(params, KEY, X, Y, jax.random.key(5), step=step, scale=0.9)
        x_adv = o.pgd_attack(
            noisy,
            params,
            X,
            Y,
            jax.random.key(5),
            epsilon=0.01 * step,
            step_size=0.004 * step,
            num_steps=2,
            key=KEY,
            has_aux=True,
            scale=0.9,
        )
        return got, jax.value_and_grad(noisy, has_aux=True)(params, x_adv, Y, jax.random.key(5), scale=0.9)

    got, want = both(params, 20)
    close(got, want)
    assert got[0][0] > noisy(params, X, Y, jax.random.key(5), scale=0.9)[0]
    same(both(params, 0)[0], jax.jit(jax.value_and_grad(noisy, has_aux=True))(params, X, Y, jax.random.key(5), scale=0.9))
    same(o.adversarial(loss, epsilon=0.0)(params, KEY, X, Y), loss(params, X, Y))


def test_adversarial_of_every_attack(x64):
    @jax.jit
    def both(params):
        got, want = [], []
        for attack in ("fgsm", "fgsm_rs", "n_fgsm"):
            got.append(o.adversarial(loss, attack=attack, epsilon=0.2)(params, KEY, X, Y))
            want.append(loss(params, o.fgsm_attack(loss, params, X, Y, epsilon=0.2, method=attack, key=KEY), Y))
        settings = dict(epsilon=0.2, step_size=0.1, num_steps=2)
        got.append(o.adversarial(loss, random_start=False, **settings)(params, KEY, X, Y))
        want.append(loss(params, o.pgd_attack(loss, params, X, Y, **settings), Y))
        return got, want

    got, want = both(PARAMS)
    close(got, want)
    assert len({float(value) for value in got}) == 4


def test_adversarial_traces_no_second_derivative():
    """A single step costs a forward pass and a backward pass to the inputs."""
    single = lambda f: lambda p, x, y: o.adversarial(f, attack="fgsm_rs", epsilon=0.1)(p, KEY, x, y)
    assert step_flops(single)[0] <= 1.8 * step_flops()[0]


def test_loss_may_take_the_step():
    seen = []

    def staged(params, x, labels, step=None):
        seen.append(step)
        return loss(params, x, labels)

    jax.eval_shape(lambda x: o.adversarial(staged, attack="fgsm")(PARAMS, KEY, x, Y, step=3), X.astype("f"))
    assert seen == [3, 3]


def test_free_adversarial_equals_its_loop(x64):
    tx = optax.sgd(0.3, momentum=0.9)
    free = o.free_adversarial(epsilon=lambda step: 0.1 * step, replays=3)
    batches = [(X, Y), (1 - X, (Y + 1) % 3)]

    @jax.jit
    def trained(params):
        carry, state, losses = (params, tx.init(params)), free.init(X), jnp.zeros(())
        for x, labels in batches:

            def replay(carry, x_adv, labels=labels):
                (params, opt_state), total = carry
                value, (grads, by_x) = jax.value_and_grad(loss, argnums=(0, 1))(params, x_adv, labels)
                updates, opt_state = tx.update(grads, opt_state, params)
                return ((optax.apply_updates(params, updates), opt_state), total + value), by_x

            (carry, losses), state = free.apply(state, replay, (carry, losses), x, step=2)
        return carry[0], losses, state.delta

    params, opt_state = PARAMS, tx.init(PARAMS)
    delta, total = np.zeros_like(X), 0.0
    gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    for x, labels in batches:
        delta = np.clip(x + delta, 0, 1) - x
        for _ in range(3):
            value, (grads, by_x) = gradient(params, x + delta, labels)
            delta = np.clip(delta + 0.2 * np.sign(by_x), -0.2, 0.2)
            delta = np.clip(x + delta, 0, 1) - x
            total += value
            updates, opt_state = tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
    got = trained(jax.tree.map(jnp.asarray, PARAMS))
    close(got, (params, total, delta), rtol=1e-9, atol=1e-12)


def test_free_step_size():
    free = o.free_adversarial(epsilon=0.5, step_size=0.125, replays=3)
    _, state = free.apply(
        free.init(jnp.full((1, 2), 0.5)), lambda n, x: (n + 1, jnp.array([[1.0, -1.0]])), 0, jnp.full((1, 2), 0.5)
    )
    np.testing.assert_allclose(state.delta, [[0.375, -0.375]])


def test_evaluation_of_a_linear_classifier_is_exact():
    """Of two classes an example withstands the attack where its margin exceeds epsilon times the dual norm."""
    w = RNG.normal(size=(6, 2))
    w = jnp.asarray(w - w.mean(0), jnp.float32)  # margins around 0 at the centre of the box
    x = jnp.asarray(RNG.uniform(0.2, 0.8, size=(40, 6)), jnp.float32)
    margin = np.asarray((x @ w) @ jnp.array([1.0, -1.0]))
    held = margin > 0
    run = lambda norm: o.pgd_evaluate(
        lambda w, x: x @ w, w, KEY, x, jnp.zeros(40, int), epsilon=0.03, num_steps=20, num_restarts=2, norm=norm
    )
    for found, order in zip(jax.jit(lambda: (run("linf"), run("l2")))(), (1, 2), strict=True):
        reach = 0.03 * np.linalg.norm(w[:, 0] - w[:, 1], order)
        assert np.array_equal(found.correct, margin > reach) and 0 < found.correct.mean() < held.mean()
        close(found.loss[found.correct], np.log1p(np.exp(reach - margin))[found.correct], rtol=2e-3)
        # Examples that were wrong to begin with are left alone.
        np.testing.assert_array_equal(found.x_adv[~held], x[~held])


def test_evaluation_keeps_the_worst_restart(x64):
    settings = dict(epsilon=0.3, step_size=0.05, num_steps=2)

    @jax.jit
    def both(params):
        found = o.pgd_evaluate(logits, params, KEY, X, Y, num_restarts=4, **settings)
        keys = [jax.random.fold_in(KEY, r) for r in range(4)]
        return found, [o.pgd_attack(loss, params, X, Y, key=key, **settings) for key in keys]

    found, attacks = both(PARAMS)
    cross_entropy = lambda x: np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits(PARAMS, x), Y))
    correct, worst, where = np.array(logits(PARAMS, X).argmax(-1) == Y), cross_entropy(X).copy(), X.copy()
    for x in attacks:
        right, value = np.asarray(logits(PARAMS, x).argmax(-1) == Y), cross_entropy(x)
        for i in range(len(X)):
            if correct[i] and (not right[i] or value[i] > worst[i]):
                worst[i], where[i] = value[i], x[i]
        correct &= right
    np.testing.assert_array_equal(found.correct, correct)
    close((found.loss, found.x_adv), (worst, where), rtol=1e-10)
    none = o.pgd_evaluate(logits, PARAMS, KEY, X, Y, num_restarts=0)
    np.testing.assert_array_equal(none.correct, logits(PARAMS, X).argmax(-1) == Y)
