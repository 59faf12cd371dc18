"""Model soups: means, the greedy choice and learned weights against loops, and the claim on digits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from regjax.weights import SoupWeights, greedy_soup, learned_soup, uniform_soup

RNG = np.random.default_rng(0)
MODELS = [{"kernel": RNG.normal(size=(3, 2)), "bias": RNG.normal(size=2)} for _ in range(5)]


def test_uniform_is_the_mean_of_a_list_or_of_an_iterator(x64):
    want = {name: sum(model[name] for model in MODELS) / 5 for name in MODELS[0]}
    for models in (MODELS, iter(MODELS)):
        soup = uniform_soup(models)
        for name, leaf in want.items():
            np.testing.assert_allclose(soup[name], leaf, rtol=1e-13)


def test_uniform_of_equal_models_is_the_model_and_counters_are_the_first_ones():
    model = {"w": jnp.asarray(RNG.normal(size=7), jnp.float32), "count": jnp.int32(3)}
    soup = uniform_soup([model | {"count": jnp.int32(i)} for i in (3, 5, 7)])
    np.testing.assert_array_equal(soup["w"], model["w"])
    assert soup["count"] == 3 and soup["count"].dtype == jnp.int32


def test_low_precision_models_are_summed_in_float32():
    # In bfloat16 the mean would stay at 1 from the 9th model on: 1 + 1/9 rounds to 1.109, and 256 + 1 to 256.
    models = [{"w": jnp.full(1, 256 + 2 * (i % 2), jnp.bfloat16)} for i in range(64)]
    soup = uniform_soup(models)["w"]
    assert soup.dtype == jnp.bfloat16 and float(soup[0]) == float(jnp.bfloat16(257))


def greedy_reference(models, score, strict=True):
    """On arrays, by the formula."""
    scores = [score(model) for model in models]
    order = sorted(range(len(models)), key=lambda m: (-scores[m], m))
    soup, best, chosen = models[order[0]], scores[order[0]], order[:1]
    for m in order[1:]:
        n = len(chosen)
        candidate = (n * soup + models[m]) / (n + 1)
        if score(candidate) > best or (score(candidate) == best and not strict):
            soup, best, chosen = candidate, score(candidate), [*chosen, m]
    return soup, chosen, best


def test_greedy_equals_its_reference_and_never_falls_below_the_best_model(x64):
    target, scale = RNG.normal(size=4), np.array([1.0, 3.0, 0.5, 2.0])
    sizes = set()
    for seed in range(6):
        models = list(target + np.random.default_rng(seed).normal(size=(7, 4)))
        calls = []
        score = lambda w, calls=calls: calls.append(1) or -float(np.sum(scale * (np.asarray(w) - target) ** 2))
        got = greedy_soup([jnp.asarray(model) for model in models], score)
        assert len(calls) == 2 * len(models) - 1
        soup, chosen, best = greedy_reference(models, score)
        np.testing.assert_allclose(got.soup, soup, rtol=1e-12)
        assert list(got.indices) == chosen and got.score == pytest.approx(best, rel=1e-12)
        assert got.score >= max(map(score, models))
        sizes.add(len(chosen))
    assert len(sizes) > 1


def test_published_values_of_the_greedy_soup():
    models = [jnp.float32(w) for w in (0.2, 1.5, 0.8, 3.0, 1.3)]
    result = greedy_soup(models, lambda w: -abs(w - 1))
    assert result.indices == (2, 4)
    assert float(result.soup) == pytest.approx(1.05, rel=1e-6) and result.score == pytest.approx(-0.05, rel=1e-5)


def test_equal_scores_are_accepted_only_if_asked():
    models = [jnp.float32(1.0), jnp.float32(3.0), jnp.float32(2.0)]
    assert greedy_soup(models, lambda w: 0.5).indices == (0,)
    everything = greedy_soup(models, lambda w: np.float32(0.5), strict=False)
    assert everything.indices == (0, 1, 2) and float(everything.soup) == 2.0


def test_a_diverged_model_is_last_and_left_out():
    models = [jnp.float32(np.nan), jnp.float32(2.0)]
    result = greedy_soup(models, lambda w: -(w**2), strict=False)
    assert result.indices == (1,) and float(result.soup) == 2.0 and result.score == -4.0


def test_the_scored_parameters_are_the_returned_ones():
    scored = []
    models = [{"w": jnp.asarray([w], jnp.bfloat16), "step": jnp.int32(i)} for i, w in enumerate((1.0, 1.0078125))]
    result = greedy_soup(models, lambda p: scored.append(p) or 0.0, strict=False)
    assert result.indices == (0, 1) and result.soup["w"].dtype == jnp.bfloat16 and int(result.soup["step"]) == 0
    assert any(np.array_equal(p["w"], result.soup["w"]) for p in scored[2:])


@pytest.mark.parametrize("granularity", ["global", "leaf"])
def test_learned_soup_and_its_gradient(x64, granularity):
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=5) if granularity == "global" else rng.normal(size=(2, 5))
    weights = SoupWeights(jnp.asarray(mixing), jnp.asarray(1.5))
    direction = {name: rng.normal(size=leaf.shape) for name, leaf in MODELS[0].items()}
    # A loss whose gradient by the soup is `direction` times the scale.
    loss = lambda p, shift, *, logit_scale: logit_scale * sum(jnp.vdot(direction[n], p[n]) for n in p) + shift
    soup = learned_soup(MODELS, loss, granularity=granularity)
    (value, mixed), gradient = jax.jit(jax.value_and_grad(soup.apply, has_aux=True))(weights, 2.0)

    want, inner, by_mixing = {}, 0.0, np.zeros_like(mixing)
    for row, name in enumerate(sorted(MODELS[0])):  # the order of leaves in a dictionary
        r = mixing if granularity == "global" else mixing[row]
        alpha = np.exp(r) / np.exp(r).sum()
        want[name] = sum(a * model[name] for a, model in zip(alpha, MODELS, strict=True))
        inner += np.sum(direction[name] * want[name])
        slopes = np.array([np.sum(direction[name] * model[name]) for model in MODELS])
        part = 1.5 * alpha * (slopes - alpha @ slopes)
        if granularity == "global":
            by_mixing += part
        else:
            by_mixing[row] = part
    for name, leaf in want.items():
        np.testing.assert_allclose(mixed[name], leaf, rtol=1e-12)
    assert float(value) == pytest.approx(1.5 * inner + 2.0, rel=1e-12)
    np.testing.assert_allclose(gradient.mixing, by_mixing, rtol=1e-10, atol=1e-13)
    assert float(gradient.logit_scale) == pytest.approx(inner, rel=1e-12)


def test_learned_soup_starts_uniform_and_finds_the_best_mixture():
    models = [jax.tree.map(jnp.float32, model) for model in MODELS[:3]]
    share = {"bias": (0.7, 0.2, 0.1), "kernel": (0.1, 0.1, 0.8)}
    target = {n: sum(s * model[n] for s, model in zip(share[n], models, strict=True)) for n in share}
    loss = lambda p, target: sum(jnp.sum((p[n] - target[n]) ** 2) for n in p)
    soup = learned_soup(models, loss, granularity="leaf", learn_temperature=False)
    start = soup.init()
    assert start.mixing.shape == (2, 3) and start.logit_scale is None
    np.testing.assert_allclose(start.mixing, 1 / 3, rtol=1e-6)
    assert learned_soup(models, lambda p, logit_scale: 0.0).init().logit_scale == 1.0
    tx = optax.adam(0.05)

    @jax.jit
    def run(weights, target):
        def step(carry, _):
            weights, state = carry
            (value, mean), gradient = jax.value_and_grad(soup.apply, has_aux=True)(weights, target)
            updates, state = tx.update(gradient, state, weights)
            return (optax.apply_updates(weights, updates), state), (value, mean)

        (weights, _), (values, means) = jax.lax.scan(step, (weights, tx.init(weights)), length=400)
        return weights, values, jax.tree.map(lambda x: x[0], means)

    weights, values, first = run(start, target)
    uniform = uniform_soup(models)
    for name in uniform:
        np.testing.assert_allclose(first[name], uniform[name], rtol=1e-5, atol=1e-6)
    assert values[-1] < 1e-3 * values[0]
    np.testing.assert_allclose(jax.nn.softmax(weights.mixing), [share["bias"], share["kernel"]], atol=0.05)


@pytest.mark.slow
def test_on_digits_soups_of_one_start_help_and_of_many_collapse():
    """Eight networks fine-tuned from one start at several rates: the greedy soup is at least the best, on test data too."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = jnp.asarray(x[order] / 16, jnp.float32), jnp.asarray(y[order])
    parts = {"pretrain": slice(0, 400), "tune": slice(400, 700), "held": slice(700, 1200), "test": slice(1200, None)}
    data = {name: (x[part], y[part]) for name, part in parts.items()}

    def logits(params, x):
        return jax.nn.relu(x @ params["in"]) @ params["out"]

    def init(key):
        one, two = jax.random.split(key)
        return {"in": jax.random.normal(one, (64, 64)) / 8, "out": jax.random.normal(two, (64, 10)) / 8}

    @jax.jit
    def train(params, keys, rates, x, y):
        def one(params, key, rate):
            def step(params, key):
                rows = jax.random.randint(key, (32,), 0, len(x))
                loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(logits(p, x[rows]), y[rows]).mean()
                return jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(loss)(params)), None

            return jax.lax.scan(step, params, jax.random.split(key, 300))[0]

        return jax.vmap(one)(params, keys, rates)

    accuracy = jax.jit(lambda params, x, y: jnp.mean(jnp.argmax(logits(params, x), -1) == y))
    keys = jax.random.split(jax.random.key(0), 24)
    rates = jnp.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8])
    apart = train(jax.vmap(init)(keys[:8]), keys[8:16], jnp.full(8, 0.3), *data["pretrain"])
    start = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[0], leaf.shape), apart)
    tuned = train(start, keys[16:], rates, *data["tune"])
    each = lambda stacked: [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(8)]
    held = lambda params: accuracy(params, *data["held"])
    test = lambda params: float(accuracy(params, *data["test"]))

    soup = greedy_soup(each(tuned), held)
    best = max(each(tuned), key=lambda params: float(held(params)))
    assert soup.score >= float(held(best)) and test(soup.soup) >= test(best) - 0.005
    assert test(uniform_soup(each(tuned))) > 0.9
    assert min(test(params) for params in each(apart)) > 0.85
    assert test(uniform_soup(each(apart))) < 0.75
