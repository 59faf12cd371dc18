"""The distance between the distributions of weights now and at initialisation, and decay towards pretrained weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
START = {"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)}
PARAMS = {"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)}


def reference(params, start, p, mean):
    total = 0.0
    for name in params:
        pairs = list(zip(sorted(params[name].ravel()), sorted(start[name].ravel()), strict=True))
        total += sum(abs(a - b) ** p for a, b in pairs) / (len(pairs) if mean else 1)
    return total


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_equals_its_reference_sorted_before_or_not(x64, p, reduction):
    want = reference(PARAMS, START, p, reduction == "mean")
    distance = jax.jit(partial(rj.weights.wasserstein_to_init, p=p, reduction=reduction))
    for start in (START, rj.weights.sorted_init(START)):
        assert float(distance(PARAMS, start)) == pytest.approx(want, rel=1e-12)


def test_published_values_and_gradient_to_the_same_rank():
    start = {"w": jnp.array([0.0, 0.0, 3.0])}
    penalty = partial(rj.weights.wasserstein_to_init, init_params=rj.weights.sorted_init(start))
    value, gradient = jax.jit(jax.value_and_grad(penalty))({"w": jnp.array([1.0, 3.0, 2.0])})
    assert float(value) == 5.0
    np.testing.assert_array_equal(gradient["w"], [2.0, 0.0, 4.0])
    for order in ([2, 0, 1], [1, 2, 0]):
        assert float(penalty({"w": start["w"][jnp.array(order)]})) == 0.0


def test_initial_weights_are_constant_and_equal_weights_are_fine():
    value_and_gradients = jax.jit(jax.value_and_grad(rj.weights.wasserstein_to_init, argnums=(0, 1)))
    ties = jax.tree.map(np.ones_like, START)
    value, (gradient, to_start) = value_and_gradients(ties, START)
    assert not any(leaf.any() for leaf in jax.tree.leaves(to_start))
    # Equal weights are shared out among the initial ones in some order: the sum is that of any order.
    assert float(gradient["bias"].sum()) == pytest.approx(2 * float((1 - START["bias"]).sum()), rel=1e-5)
    assert float(value) == pytest.approx(reference(ties, START, 2, False), rel=1e-5)


def test_where_and_low_precision():
    got = rj.weights.wasserstein_to_init(PARAMS, START, where="kernels")
    want = reference({"kernel": PARAMS["kernel"]}, START, 2, False)
    assert float(got) == pytest.approx(want, rel=1e-5)
    low = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (PARAMS, START))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    assert float(rj.weights.wasserstein_to_init(*low)) == pytest.approx(float(rj.weights.wasserstein_to_init(*wide)), rel=1e-6)
    assert rj.weights.sorted_init(low[0]).values["kernel"].dtype == jnp.bfloat16


def test_l2_sp_and_its_gradient(x64):
    anchor = {"kernel": START["kernel"], "bias": None}
    new = {"kernel": False, "bias": True}

    @jax.jit
    def both(alpha, beta):
        penalty = lambda p: rj.weights.l2_sp(p, anchor, alpha=alpha, beta=beta, new_mask=new)
        return jax.value_and_grad(penalty)(PARAMS)

    for alpha, beta in ((0.1, 0.01), (3.0, 0.0), (0.0, 2.0)):
        value, gradient = both(alpha, beta)
        want = 0.0
        for i in np.ndindex(4, 3):
            want += alpha / 2 * (PARAMS["kernel"][i] - START["kernel"][i]) ** 2
        want += sum(beta / 2 * w**2 for w in PARAMS["bias"])
        assert float(value) == pytest.approx(want, rel=1e-12)
        np.testing.assert_allclose(gradient["kernel"], alpha * (PARAMS["kernel"] - START["kernel"]), rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(gradient["bias"], beta * PARAMS["bias"], rtol=1e-12, atol=1e-15)


def test_l2_sp_takes_a_new_head_of_another_size_and_a_choice_of_leaves(x64):
    head = lambda path, leaf: path[0] == "bias"
    for there in (None, np.ones(10), {"another": "head"}):
        got = rj.weights.l2_sp(PARAMS, {"kernel": PARAMS["kernel"], "bias": there}, new_mask=head, beta=2.0)
        assert float(got) == pytest.approx(np.sum(PARAMS["bias"] ** 2), rel=1e-12)
    kernels = rj.weights.l2_sp(PARAMS, START, alpha=2.0, where="kernels")
    assert float(kernels) == pytest.approx(np.sum((PARAMS["kernel"] - START["kernel"]) ** 2), rel=1e-12)
    # Without new leaves and with an anchor of zero it is plain weight decay.
    zero = jax.tree.map(np.zeros_like, PARAMS)
    assert float(rj.weights.l2_sp(PARAMS, zero, alpha=1.0, where=None)) == pytest.approx(np.sum(PARAMS["kernel"] ** 2) / 2)
