"""AAER against a loop, the published values, and the passes written out."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.objectives.problems import close, same, step_flops

o = rj.objectives
RNG = np.random.default_rng(0)
PARAMS = {"hidden": 2 * RNG.normal(size=(6, 5)), "out": 3 * RNG.normal(size=(5, 3))}
X = RNG.uniform(0, 1, size=(9, 6))
Y = RNG.integers(0, 3, size=9)
KEY = jax.random.key(0)
BEFORE, AFTER = 2 * RNG.normal(size=(9, 3)), 2 * RNG.normal(size=(9, 3))


def logits(params, x):
    return jnp.sin(x @ params["hidden"]) @ params["out"]


def reference(before, after, labels, count_weight, confidence_weight, logit_weight):
    ce = lambda z, y: np.log(np.exp(z).sum()) - z[y]
    a = [ce(z, y) for z, y in zip(after, labels, strict=True)]
    b = [ce(z, y) for z, y in zip(before, labels, strict=True)]
    abnormal = [i for i in range(len(a)) if b[i] > a[i]]
    others = [i for i in range(len(a)) if b[i] <= a[i]]
    total = sum(a) / len(a)
    if abnormal and others:
        gap = sum(b[i] - a[i] for i in abnormal) / len(abnormal)
        v = [sum(np.sum((before[i] - after[i]) ** 2) for i in s) / len(s) for s in (abnormal, others)]
        total += count_weight * len(abnormal) / len(a) * (confidence_weight * gap + logit_weight * max(v[0] - v[1], 0))
    return total


def test_loss_equals_its_loop(x64):
    weights = dict(count_weight=0.7, confidence_weight=2.0, logit_weight=1.3)
    value = jax.jit(lambda b, a: o.aaer_loss(b, a, Y, **weights))
    cases = [(BEFORE, AFTER), (AFTER, BEFORE), (BEFORE, 3 * AFTER), (BEFORE, BEFORE), (np.zeros((9, 3)), 5 * np.eye(3)[Y])]
    got = [float(value(*case)) for case in cases]
    close(got, [reference(*case, Y, **weights) for case in cases], rtol=1e-12)
    # Neither none nor all abnormal adds anything; a variance larger than that of the others does.
    cross_entropy = jax.jit(lambda a: o.aaer_loss(a, a, Y))
    close([got[3], got[4]], [cross_entropy(BEFORE), cross_entropy(5 * np.eye(3)[Y])], rtol=1e-12)
    soft = o.aaer_loss(BEFORE, AFTER, np.eye(3)[Y], **weights)
    close(soft, got[0], rtol=1e-12)


def test_published_values(x64):
    before, labels = jnp.zeros((2, 2)), jnp.array([0, 0])
    loss = jax.jit(jax.value_and_grad(o.aaer_loss, argnums=(0, 1)))
    value, _ = loss(before, jnp.eye(2), labels)
    np.testing.assert_allclose(value, 1.288118554, atol=1e-9)
    value, (none, gradient) = loss(before, jnp.array([[2.0, 0.0], [0.0, 1.0]]), labels)
    np.testing.assert_allclose(value, 3.677868811, atol=1e-9)
    np.testing.assert_allclose(gradient, [[2.94039854, 0.05960146], [-0.36552929, 0.36552929]], atol=1e-8)
    assert not np.any(none)


def test_gradient_routing(x64):
    """The confidence term has a gradient on request; V of the other examples never has one."""

    each = lambda z: np.array([reference(row[None], row[None], [y], 0, 0, 0) for row, y in zip(z, Y, strict=True)])
    abnormal = each(BEFORE) > each(AFTER)
    assert 0 < abnormal.sum() < 9

    def by_hand(after, through):
        ce = lambda z: jax.nn.logsumexp(z, -1) - z[np.arange(9), Y]
        moved = jnp.sum((BEFORE - after) ** 2, -1)
        excess = jnp.maximum(moved[abnormal].mean() - jax.lax.stop_gradient(moved[~abnormal].mean()), 0)
        gap = (ce(BEFORE) - ce(after))[abnormal].mean()
        return ce(after).mean() + abnormal.mean() * (2.5 * (gap if through else jax.lax.stop_gradient(gap)) + 1.5 * excess)

    @jax.jit
    def both(after):
        ours = [lambda a, t=t: o.aaer_loss(BEFORE, a, Y, confidence_gradient=t) for t in (False, True)]
        return [jax.value_and_grad(f)(after) for f in ours], [jax.value_and_grad(by_hand)(after, t) for t in (False, True)]

    got, want = both(jnp.asarray(AFTER))
    close(got, want, rtol=1e-10, atol=1e-12)
    assert np.any(got[0][1] != got[1][1])


def test_training_loss_is_its_passes_written_out(x64):
    """With the authors' starts, steps and clips; `before` is at the random start, not at the clean image."""

    @jax.jit
    def both(params):
        got, want = [], []
        uniform = jax.random.uniform(KEY, X.shape, jnp.float32, -1, 1).astype(float)
        for init, start, step, ball in (("rs", 0.3, 0.375, 0.3), ("n", 0.6, 0.3, np.inf)):
            delta = jnp.clip(X + start * uniform, 0, 1) - X
            frozen = jax.tree.map(jax.lax.stop_gradient, params)
            ce = lambda x, p=frozen: jnp.sum(jax.nn.logsumexp(logits(p, x), -1) - logits(p, x)[np.arange(9), Y])
            moved = jnp.clip(X + jnp.clip(delta + step * jnp.sign(jax.grad(ce)(X + delta)), -ball, ball), 0, 1)
            by_hand = lambda p, d=delta, m=moved: o.aaer_loss(logits(p, X + d), logits(p, m), Y, logit_weight=0.3)
            want.append(jax.value_and_grad(by_hand)(params))
            ramp = lambda step: 0.1 * step
            loss = o.aaer(logits, epsilon=ramp, init=init, logit_weight=ramp, with_info=True)
            (value, info), gradient = jax.value_and_grad(loss, has_aux=True)(params, KEY, X, Y, step=3)
            got.append((value, gradient))
            assert set(info) == {"abnormal"}
        return got, want, info["abnormal"]

    got, want, share = both(jax.tree.map(jnp.asarray, PARAMS))
    close(got, want, rtol=1e-9, atol=1e-12)
    assert 0 < share < 1  # the step is too long for so wavy a model


def test_aux_and_plain_limits(x64):
    with_aux = lambda params, x, scale: (logits(params, x) * scale, x)

    @jax.jit
    def run(params, x):
        loss, (seen, _) = o.aaer(with_aux, epsilon=0.2, has_aux=True, with_info=True)(params, KEY, x, Y, scale=0.5)
        value, other = o.aaer(with_aux, epsilon=0.2, has_aux=True)(params, KEY, x, Y, 0.5)
        linear = o.aaer(lambda p, x: x @ p["hidden"][:, :3], epsilon=0.05, with_info=True)(params, KEY, x, Y)
        none = o.aaer(logits, epsilon=0.0)(params, KEY, x, Y)
        return (loss, seen), (value, other), linear[1]["abnormal"], none, o.aaer_loss(logits(params, x), logits(params, x), Y)

    first, second, abnormal, none, plain = run(PARAMS, X)
    same(first, second)
    assert 0 < np.abs(first[1] - X).max() <= 0.2 + 1e-12
    assert abnormal == 0  # cross-entropy of a linear model is convex: a step up its gradient raises it
    close(none, plain)


def test_cost():
    """The attack's own pass gives the logits before it: no more than single-step adversarial training, no second derivatives."""

    def net(params, x):
        for i, layer in enumerate(params):
            x = x @ layer["kernel"] + layer["bias"]
            x = x if i == len(params) - 1 else jax.nn.relu(x)
        return x

    transform = lambda plain: lambda params, x, y: o.aaer(net, epsilon=0.1)(params, KEY, x, y)
    assert step_flops(transform)[0] <= 1.8 * step_flops()[0]
