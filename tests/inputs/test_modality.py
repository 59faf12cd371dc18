"""Modality dropout: the core against a loop, the sampler's rates, and gradients that stop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import regjax as rj

RNG = np.random.default_rng(0)
TEXT, VIDEO = RNG.normal(size=(6, 3)).astype(np.float32), RNG.normal(size=(6, 2, 2)).astype(np.float32)
NULL = RNG.normal(size=3).astype(np.float32)
KEEP = {"text": np.array([1, 0, 0, 1, 0, 1], bool), "video": np.array([0, 0, 1, 1, 0, 0], bool)}
FALLBACK = np.array([0, 1, 0, 0, 0, 1])


def test_core_equals_the_loop():
    apply = jax.jit(rj.inputs.apply_modality_dropout)
    for null in (None, NULL, TEXT[::-1]):
        want = TEXT.copy()
        for b in range(6):
            if not KEEP["text"][b]:
                want[b] = 0 if null is None else null if null.ndim == 1 else null[b]
        np.testing.assert_array_equal(apply(TEXT, KEEP["text"], null=null), want)
    low = apply(TEXT.astype(jnp.bfloat16), KEEP["text"], null=NULL)
    assert low.dtype == jnp.bfloat16


def test_core_of_a_set_keeps_the_fallback_where_nothing_is_left():
    out, keep = jax.jit(rj.inputs.apply_modality_dropout_set)(
        {"video": VIDEO, "text": TEXT}, KEEP, fallback=FALLBACK, nulls={"text": NULL}
    )
    for b in range(6):
        kept = {m for m in KEEP if KEEP[m][b]} or {("text", "video")[FALLBACK[b]]}
        assert {m for m in keep if keep[m][b]} == kept
        np.testing.assert_array_equal(out["text"][b], TEXT[b] if "text" in kept else NULL)
        np.testing.assert_array_equal(out["video"][b], VIDEO[b] if "video" in kept else 0)
    _, plain = rj.inputs.apply_modality_dropout_set({"video": VIDEO, "text": TEXT}, KEEP)
    assert all(np.array_equal(plain[m], KEEP[m]) for m in KEEP)


def test_limits_of_the_rate_also_traced():
    drop = jax.jit(lambda key, text, rate: rj.inputs.modality_dropout(key, text, rate=rate, null=NULL))
    key = jax.random.key(0)
    np.testing.assert_array_equal(drop(key, TEXT, 0.0), TEXT)
    np.testing.assert_array_equal(drop(key, TEXT, 1.0), np.tile(NULL, (6, 1)))
    np.testing.assert_array_equal(drop(key, TEXT + 7, 1.0), drop(key, TEXT, 1.0))
    np.testing.assert_array_equal(rj.inputs.modality_dropout(None, TEXT, rate=0.9, deterministic=True), TEXT)


def test_dropped_examples_send_no_gradient_and_a_null_embedding_learns():
    loss = lambda text, null: jnp.sum(
        jnp.arange(1.0, 7)[:, None] * rj.inputs.apply_modality_dropout(text, KEEP["text"], null=null)
    )
    by_text, by_null = jax.grad(loss, (0, 1))(TEXT, NULL)
    np.testing.assert_array_equal(by_text, np.where(KEEP["text"], np.arange(1, 7), 0)[:, None] * np.ones(3))
    np.testing.assert_array_equal(by_null, [10, 10, 10])
    broken = np.where(KEEP["text"][:, None], TEXT, np.nan)
    assert np.all(np.isfinite(rj.inputs.apply_modality_dropout(broken, KEEP["text"])))


def test_the_sampler_drops_whole_examples_at_its_rate():
    drop = jax.jit(lambda key, x, rate: rj.inputs.modality_dropout(key, x, rate=rate))
    for rate in (0.1, 0.6):
        out = np.asarray(drop(jax.random.key(1), jnp.ones((8000, 2), jnp.bfloat16), rate).astype(jnp.float32))
        assert set(np.unique(out)) == {0, 1}, "nothing is rescaled"
        assert np.all(out[:, 0] == out[:, 1]), "a modality is dropped as a whole"
        assert abs(out[:, 0].mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / 8000)


@pytest.mark.parametrize("keep_at_least_one", [True, False])
def test_a_set_is_dropped_independently_but_not_to_nothing(keep_at_least_one):
    n, rates = 8000, {"audio": 0.3, "text": 0.8, "video": 0.6}
    embeddings = {m: jnp.ones((n, 1)) for m in rates}
    fn = functools.partial(rj.inputs.modality_dropout_set, keep_at_least_one=keep_at_least_one)
    out, keep = jax.jit(lambda key, rates: fn(key, embeddings, rates=rates))(jax.random.key(0), rates)
    stacked = np.stack([keep[m] for m in rates])
    assert all(np.array_equal(out[m][:, 0] == 1, keep[m]) for m in rates)
    none = 0.3 * 0.8 * 0.6
    for m, rate in rates.items():
        p = 1 - rate + none / 3 * keep_at_least_one
        assert abs(np.mean(keep[m]) - p) < 5 * np.sqrt(p * (1 - p) / n)
    lost = np.mean(~stacked.any(0))
    if keep_at_least_one:
        assert lost == 0
        # Where all were to go, one stays: with rates of 1 each is as likely as another, and alone.
        _, only = fn(jax.random.key(1), embeddings, rates=1.0)
        only = np.stack([only[m] for m in rates])
        assert np.all(only.sum(0) == 1)
        assert np.all(abs(only.mean(1) - 1 / 3) < 5 * np.sqrt(2 / 9 / n))
    else:
        assert abs(lost - none) < 5 * np.sqrt(none * (1 - none) / n)
        assert np.all(abs(np.corrcoef(stacked) - np.eye(3)) < 5 / np.sqrt(n))


def test_the_order_of_names_does_not_matter():
    key = jax.random.key(5)
    one = rj.inputs.modality_dropout_set(key, {"video": VIDEO, "text": TEXT}, rates={"video": 0.5, "text": 0.4})
    two = rj.inputs.modality_dropout_set(key, {"text": TEXT, "video": VIDEO}, rates={"text": 0.4, "video": 0.5})
    for a, b in zip(one, two, strict=True):
        assert all(np.array_equal(a[m], b[m]) for m in a)


@pytest.mark.slow
def test_a_retriever_that_loses_its_text_still_looks_at_the_video():
    """Top halves of digits as text, noisy bottom halves as video, whole digits to be found: recall without the text."""
    images = jnp.asarray((load_digits().images / 16)[np.random.default_rng(0).permutation(1797)], jnp.float32)
    text, video, whole = images[:, :4].reshape(-1, 32), images[:, 4:].reshape(-1, 32), images.reshape(-1, 64)
    sizes = {"text": (32, 64, 32), "video": (32, 64, 32), "fused": (64, 64, 32), "whole": (64, 64, 32)}

    def net(layers, x):
        return jax.nn.relu(x @ layers[0]) @ layers[1]

    def query(params, words, video):
        return net(params["fused"], jnp.concatenate([words, net(params["video"], video)], -1))

    @jax.jit
    def run(key, rate):
        params = {}
        for i, (name, size) in enumerate(sizes.items()):
            normal = lambda j, i=i, size=size: jax.random.normal(jax.random.fold_in(key, 2 * i + j), size[j : j + 2])
            params[name] = [normal(j) / np.sqrt(size[j]) for j in range(2)]
        tx = optax.adam(3e-3)

        def step(carry, key):
            params, state = carry
            keys = jax.random.split(key, 4)
            i = jax.random.randint(keys[0], (128,), 0, 1400)
            seen = video[i] + 0.3 * jax.random.normal(keys[1], (128, 32))
            found = whole[i] + 0.15 * jax.random.normal(keys[2], (128, 64))

            def loss(params):
                words = rj.inputs.modality_dropout(keys[3], net(params["text"], text[i]), rate=rate)
                return jnp.mean(rj.losses.info_nce(query(params, words, seen), net(params["whole"], found)))

            updates, state = tx.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        steps = jax.random.split(jax.random.fold_in(key, 9), 400)
        params = jax.lax.scan(step, (params, tx.init(params)), steps)[0][0]
        words, keys = net(params["text"], text[1400:]), net(params["whole"], whole[1400:])
        keys = keys / jnp.linalg.norm(keys, axis=-1, keepdims=True)
        found = [jnp.argmax(query(params, given, video[1400:]) @ keys.T, -1) for given in (jnp.zeros_like(words), words)]
        return jnp.mean(jnp.stack(found) == jnp.arange(397), axis=-1)

    without, dropped, video_only = (run(jax.random.key(0), rate) for rate in (0.0, 0.5, 1.0))
    assert without[0] < 0.2 < 0.5 < dropped[0], "without dropout the video is hardly used"
    assert dropped[1] > video_only[0] + 0.02, "and the text, where there is one, still helps"
