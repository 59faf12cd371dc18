"""Teacher dropping, the loss of one teacher and the running scale of its features, against loops; and its claim in small."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
LOSSES = RNG.uniform(0.1, 1.0, size=(3, 7))
LOSSES[:, 5] = 0.4  # a tie: the first stays
UNIFORMS = RNG.uniform(size=(3, 7))
WHERE = np.array([True, True, False, True, True, True, False])
ORACLE = np.array([[0.9, 0.2], [0.1, 0.8], [0.4, 0.5]])
# Image 0 keeps its worst teacher, 0; image 1 its worst, 1, and teacher 2.
ORACLE_UNIFORMS = np.array([[0.9, 0.1], [0.2, 0.3], [0.4, 0.7]])


def loop(losses, uniforms, drop_prob, normalize, counted):
    coefficients, means = np.zeros(losses.shape), []
    for b in counted:
        worst = max(range(len(losses)), key=lambda t: (losses[t, b], -t))
        for t in range(len(losses)):
            coefficients[t, b] = t == worst or uniforms[t, b] >= drop_prob
        means.append((coefficients[:, b] * losses[:, b]).sum() / coefficients[:, b].sum())
    total = (coefficients * losses).sum() / coefficients.sum() if normalize == "global" else np.mean(means)
    return total, coefficients


def test_apply_equals_the_loop(x64):
    for normalize in ("global", "example"):
        fn = jax.jit(functools.partial(rj.losses.apply_teacher_dropping, normalize=normalize))
        for drop_prob in (0.0, 0.3, 0.8, 1.0):
            for where in (np.ones(7, bool), WHERE):
                got = fn(LOSSES, UNIFORMS, drop_prob=drop_prob, where=where)
                want = loop(LOSSES, UNIFORMS, drop_prob, normalize, np.flatnonzero(where))
                for a, b in zip(got, want, strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-12)


def test_published_values_and_limits():
    apply = jax.jit(rj.losses.apply_teacher_dropping, static_argnames="normalize")
    value, coefficients = apply(ORACLE, ORACLE_UNIFORMS)
    assert coefficients.tolist() == [[1, 0], [0, 1], [0, 1]]
    assert float(value) == pytest.approx(0.73333333, abs=1e-6)
    assert float(apply(ORACLE, ORACLE_UNIFORMS, normalize="example")[0]) == pytest.approx(0.775, abs=1e-6)
    key = jax.random.key(0)
    for normalize in ("global", "example"):
        drop = jax.jit(functools.partial(rj.losses.teacher_dropping, key, LOSSES, normalize=normalize))
        assert float(drop(drop_prob=0.0)[0]) == pytest.approx(LOSSES.mean(), rel=1e-6)
        assert float(drop(drop_prob=1.0)[0]) == pytest.approx(LOSSES.max(0).mean(), rel=1e-6)


def test_gradient_goes_to_kept_teachers_alone():
    broken = ORACLE.copy()
    broken[2, 0] = -np.inf  # dropped
    fn = lambda losses, where=None: rj.losses.apply_teacher_dropping(losses, ORACLE_UNIFORMS, where=where)[0]
    np.testing.assert_allclose(jax.grad(fn)(broken), np.array([[1, 0], [0, 1], [0, 1]]) / 3, rtol=1e-6)
    broken[:, 0] = np.nan
    value, gradient = jax.value_and_grad(fn)(broken, np.array([False, True]))
    assert float(value) == pytest.approx(0.65, rel=1e-6)
    np.testing.assert_allclose(gradient, np.array([[0, 0], [0, 1], [0, 1]]) / 2, rtol=1e-6)
    assert np.isnan(float(fn(broken))), "a diverged loss that counts is seen"
    assert float(fn(broken, np.zeros(2, bool))) == 0


def test_the_sampler_drops_each_other_teacher_at_its_rate():
    losses = jnp.asarray(RNG.uniform(size=(4, 5000)), jnp.bfloat16).at[2].set(2.0)
    drop = jax.jit(lambda key, p: rj.losses.teacher_dropping(key, losses, drop_prob=p)[1])
    for p in (0.5, 0.2):
        kept = np.asarray(drop(jax.random.key(1), p))
        assert np.all(kept[2] == 1)
        others = kept[[0, 1, 3]]
        assert np.all(abs(others.mean(-1) - (1 - p)) < 5 * np.sqrt(p * (1 - p) / 5000))
        assert np.all(abs(np.corrcoef(others) - np.eye(3)) < 5 / np.sqrt(5000)), "teachers are dropped independently"
        assert not np.array_equal(kept, drop(jax.random.key(2), p))


def unic_loop(s, t, cosine_weight, smooth_l1_weight):
    out = []
    for a, b in zip(s, t, strict=True):
        tokens = []
        for x, y in zip(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]), strict=True):
            norm = np.sqrt(x @ x) * np.sqrt(y @ y)
            cosine = x @ y / norm if norm > 0 else 0.0
            smooth = [0.5 * d * d if abs(d) < 1 else abs(d) - 0.5 for d in x - y]
            tokens.append(cosine_weight * (1 - cosine) + smooth_l1_weight * np.mean(smooth))
        out.append(np.mean(tokens))
    return np.array(out)


def test_loss_of_one_teacher_equals_the_loop(x64):
    fn = jax.jit(rj.losses.unic_teacher_loss)
    for shape in ((5, 6), (5, 3, 6)):
        s, t = 1.5 * RNG.normal(size=shape), RNG.normal(size=shape)
        s[0] = 0
        for weights in ((0.5, 0.5), (0.0, 2.0), (1.0, 0.0)):
            got = fn(s, t, cosine_weight=weights[0], smooth_l1_weight=weights[1])
            np.testing.assert_allclose(got, unic_loop(s, t, *weights), rtol=1e-12)
    np.testing.assert_allclose(fn(t, t), 0, atol=1e-12)
    assert float(fn(np.array([[1.0, 0.0]]), np.array([[0.0, 2.0]]))[0]) == pytest.approx(1.0)


def test_a_zero_vector_has_no_direction_and_no_steep_gradient():
    loss = lambda s: jnp.sum(rj.losses.unic_teacher_loss(s, jnp.array([[0.3, -0.4]]), smooth_l1_weight=0.0))
    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.zeros((1, 2)))
    assert float(value) == 0.5
    assert gradient.tolist() == [[0, 0]]


def test_normalizer_equals_the_loop_and_uses_what_it_knew_before(x64):
    momentum = optax.cosine_decay_schedule(1.0, 4, alpha=0.001)
    normalizer = rj.losses.teacher_normalizer(3, momentum=momentum)
    apply = jax.jit(normalizer.apply)
    mean, std, state = np.zeros(3), np.ones(3), normalizer.init()
    for step in range(5):
        x = 3 * RNG.normal(size=(6, 2, 3)) + np.array([1.0, -2.0, 5.0])
        where = np.arange(6) != step
        out, state = apply(state, x, where=where)
        np.testing.assert_allclose(out, (x - mean) / (std + 1e-6), rtol=1e-5)
        rows = x[where].reshape(-1, 3)
        m = 0.001 + 0.999 * 0.5 * (1 + np.cos(np.pi * min(step / 4, 1)))
        mean = (1 - m) * mean + m * rows.mean(0)
        std = (1 - m) * std + m * rows.std(0, ddof=1)
        np.testing.assert_allclose(state.mean, mean, rtol=1e-5)
        np.testing.assert_allclose(state.std, std, rtol=1e-5)
        assert (state.mean.dtype, state.std.dtype, int(state.step)) == (jnp.float32, jnp.float32, step + 1)


def test_normalizer_of_few_vectors_keeps_what_they_do_not_tell():
    normalizer = rj.losses.teacher_normalizer(2, momentum=1.0)
    state = normalizer.init()
    _, one = normalizer.apply(state, jnp.array([[3.0, 4.0]]))
    assert (one.mean.tolist(), one.std.tolist()) == ([3, 4], [1, 1])
    _, none = normalizer.apply(one, jnp.full((2, 2), jnp.nan), where=jnp.zeros(2, bool))
    assert (none.mean.tolist(), none.std.tolist()) == ([3, 4], [1, 1])
    # Far from 0 the deviation does not drown in the square of the mean.
    _, far = normalizer.apply(state, jnp.array([[1e4, 0.0], [1e4 + 1, 2.0]]))
    np.testing.assert_allclose(far.std, [np.sqrt(0.5), np.sqrt(2)], rtol=1e-3)


@pytest.mark.slow
def test_dropping_evens_out_the_teachers():
    """One linear teacher and two random-feature ones, a narrow student: the largest loss over the smallest."""

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def run(key, drop_prob):
        keys = jax.random.split(key, 7)
        easy, *hard = (s * jax.random.normal(k, (8, 8)) / np.sqrt(8) for s, k in zip((1.0, 1.5, 2.5), keys[:3], strict=True))
        params = {
            "w": jax.random.normal(keys[3], (8, 16)) / np.sqrt(8),
            "b": jnp.zeros(16),
            "heads": jax.random.normal(keys[4], (3, 16, 8)) / 4,
        }

        def losses(params, x):
            teachers = jnp.stack([x @ easy, *(np.sqrt(2) * jnp.sin(x @ w + 1) for w in hard)])
            student = jax.nn.relu(x @ params["w"] + params["b"]) @ params["heads"]
            return jax.vmap(rj.losses.unic_teacher_loss)(student, teachers)

        tx = optax.adam(3e-3)

        def step(carry, key):
            params, state = carry
            x = jax.random.normal(key, (64, 8))
            loss = lambda p: rj.losses.teacher_dropping(jax.random.fold_in(key, 1), losses(p, x), drop_prob=drop_prob)[0]
            updates, state = tx.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(keys[5], 500))
        final = jnp.mean(losses(params, jax.random.normal(keys[6], (500, 8))), axis=1)
        return jnp.max(final) / jnp.min(final)

    plain, half, worst_alone = (run(jax.random.split(jax.random.key(0), 4), p) for p in (0.0, 0.5, 1.0))
    assert np.all(half < plain)
    assert np.all(worst_alone < 0.7 * half)
