"""Modality dropout: the embedding of a whole modality replaced by a null one, example by example."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding
from regjax.core.types import Array, Key, Strength


def modality_dropout(key: Key | None, embedding: Any, *, rate: Strength, null: Any = None, deterministic: bool = False) -> Array:
    r"""Replaces a modality's embedding by a null one in some examples, so that a model learns to do without it.

    Formula:
      .. math:: \tilde e_b = z_b \, e_b + (1 - z_b) \, e_0, \quad z_b \sim Bernoulli(1 - rate)

      Nothing is rescaled. A dropped example sends exactly no gradient to the encoder of this modality. Normalise after the
      fusion with other modalities, with care for a null vector of zeros.

    Args:
      key: a random key; None will do where ``deterministic``.
      embedding: float ``[B, ...]``.
      rate: the probability of dropping in [0, 1], a number or a traced scalar. 0 changes nothing.
      null: :math:`e_0`: None (default) for zeros, or float of the shape ``[...]`` of one example, or of the whole; an
        embedding of the empty text, or a learned one, which gets its gradient.
      deterministic: True for test mode, the identity: a modality that is there is used, and for one that is not give the
        null embedding.

    Returns:
      An array of the shape and dtype of ``embedding``.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``rate`` is outside [0, 1] or not finite.

    Cost:
      One pass over the embedding.
      XLA at [1024, 512]: at most 1.3 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      For: distribution shift.
      When: One modality is so telling that the model ignores the others, or it may be missing at test. Drop that one: a
        retriever of digits hardly used its second view without it, and used both at a rate of a half.
      Not when: All modalities are always there and none dominates: dropped examples only lose information. Dropping the weak
        modality makes the model lean on the strong one still more.
      Badly with: L2-normalisation of the embedding after it without an epsilon, as the null is zeros. BatchNorm after the
        fusion, which sees two populations. A null at test other than the one trained with.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> text = rj.inputs.modality_dropout(jax.random.key(0), jnp.ones((1000, 4)), rate=0.25)
      >>> text.shape, 0.7 < float(text.mean()) < 0.8
      ((1000, 4), True)

    References:
      McKee et al., Language-Guided Music Recommendation for Video via Prompt Analogies, 2023, arXiv 2306.09327.
      Reconstructed from the abstract and figures; the paper's rate, and whether its null embedding is zeros or the empty
      text's, are uncertain.
    """
    name = "inputs.modality_dropout"
    embedding = _check_embedding(name, "embedding", embedding)
    _check_rate(name, "rate", rate)
    null = _check_null(name, "null", null, embedding)
    if checks.boolean(name, "deterministic", deterministic):
        return embedding
    return _replace(embedding, _keep(checks.key(name, key), embedding, rate), null)


def apply_modality_dropout(embedding: Any, keep: Any, *, null: Any = None) -> Array:
    r"""Modality dropout with the choice of examples given: the core of `modality_dropout`.

    Formula:
      ``where(keep, embedding, null)``, example by example.

    Args:
      embedding: float ``[B, ...]``.
      keep: boolean ``[B]``: the examples that keep the modality.
      null: None (default) for zeros, or float of the shape ``[...]`` of one example, or of the whole.

    Returns:
      An array of the shape and dtype of ``embedding``.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      One pass over the embedding.
      XLA at [1024, 512]: at most 1.1 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its memory
      more.

    Use:
      Part of: `modality_dropout`.
      When: Call it with a mask of your own: at test with the examples that truly lack the modality.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> keep = jnp.array([True, False])
      >>> rj.inputs.apply_modality_dropout(jnp.ones((2, 2)), keep, null=jnp.array([0.0, 5.0])).tolist()
      [[1.0, 1.0], [0.0, 5.0]]

    References:
      McKee et al., Language-Guided Music Recommendation for Video via Prompt Analogies, 2023, arXiv 2306.09327.
    """
    name = "inputs.apply_modality_dropout"
    embedding = _check_embedding(name, "embedding", embedding)
    keep = _check_keep(name, keep, embedding.shape[0])
    return _replace(embedding, keep, _check_null(name, "null", null, embedding))


def modality_dropout_set(
    key: Key | None,
    embeddings: Mapping[str, Any],
    *,
    rates: Strength,
    nulls: Mapping[str, Any] | None = None,
    keep_at_least_one: bool = True,
    deterministic: bool = False,
) -> tuple[dict[str, Array], dict[str, Array]]:
    r"""Modality dropout on several modalities at once, of which each example keeps one at least.

    Formula:
      .. math:: z_{mb} \sim Bernoulli(1 - rate_m) \text{ independently}; \quad
                \text{where } z_{mb} = 0 \text{ for all } m: \; z_{Mb} = 1, \; M \text{ uniform}

    Args:
      key: a random key; None will do where ``deterministic``.
      embeddings: ``{name: float [B, ...]}``.
      rates: ``{name: rate}`` for each modality, or one rate for all; in [0, 1], numbers or traced scalars. 0 changes nothing.
      nulls: ``{name: null}`` for some or all of them, as in `modality_dropout`; default zeros.
      keep_at_least_one: whether an example that would lose all modalities keeps one of them, default True: modality m then
        stays with probability ``1 - rate_m + (product of all rates) / (number of modalities)``.
      deterministic: True for test mode: everything is kept.

    Returns:
      ``(embeddings, keep)``: two dictionaries of the same names, with arrays like the embeddings and boolean ``[B]``.

    Raises:
      ValueError: if names, shapes or dtypes do not fit, or a rate is outside [0, 1] or not finite.

    Cost:
      One pass over the embeddings.
      XLA at 2 times [1024, 512]: at most 1.4 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      For: distribution shift.
      When: Any of several modalities may be missing at test, and one model must serve every combination. The returned masks
        tell a fusion by attention what to leave out.
      Not when: One modality alone dominates or goes missing: drop that one with `modality_dropout`.
      Badly with: High rates taken at their word: with keep_at_least_one a modality stays more often than 1 - rate says.
        `modality_dropout` on one of the modalities before it, which can leave an example with nothing.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> batch = {"text": jnp.ones((100, 4)), "video": jnp.ones((100, 8))}
      >>> out, keep = rj.inputs.modality_dropout_set(jax.random.key(0), batch, rates={"text": 0.9, "video": 0.9})
      >>> bool(jnp.all(keep["text"] | keep["video"]))
      True

    References:
      McKee et al., Language-Guided Music Recommendation for Video via Prompt Analogies, 2023, arXiv 2306.09327, where text
      alone is dropped. Reconstructed; the fallback to one modality is an addition.
    """
    name = "inputs.modality_dropout_set"
    embeddings = _check_set(name, embeddings)
    rates = _of_names(name, "rates", rates, embeddings) if isinstance(rates, Mapping) else dict.fromkeys(embeddings, rates)
    for rate in rates.values():
        _check_rate(name, "rates", rate)
    nulls = _check_nulls(name, nulls, embeddings)
    checks.boolean(name, "keep_at_least_one", keep_at_least_one)
    if checks.boolean(name, "deterministic", deterministic):
        return embeddings, {m: jnp.ones(x.shape[:1], bool) for m, x in embeddings.items()}
    masks_key, fallback_key = jax.random.split(checks.key(name, key))
    # In the order of names, as a dictionary has another order inside jit.
    names = sorted(embeddings)
    keep = {m: _keep(jax.random.fold_in(masks_key, i), embeddings[m], rates[m]) for i, m in enumerate(names)}
    fallback = None
    if keep_at_least_one:
        first = embeddings[names[0]]
        # By a float32 uniform, whose draw can be sharded as the batch is.
        uniform = jax.random.uniform(fallback_key, first.shape[:1], jnp.float32, out_sharding=_rows(first))
        fallback = jnp.minimum((uniform * len(names)).astype(jnp.int32), len(names) - 1)
    return _replace_set(embeddings, keep, fallback, nulls)


def apply_modality_dropout_set(
    embeddings: Mapping[str, Any], keep: Mapping[str, Any], *, fallback: Any = None, nulls: Mapping[str, Any] | None = None
) -> tuple[dict[str, Array], dict[str, Array]]:
    r"""Modality dropout on several modalities with all choices given: the core of `modality_dropout_set`.

    Formula:
      ``where(keep[m], embeddings[m], nulls[m])``, after ``keep`` has been set for modality number ``fallback[b]``, in the
      order of names, where example b would keep none.

    Args:
      embeddings: ``{name: float [B, ...]}``.
      keep: ``{name: boolean [B]}``.
      fallback: None (default), or integer ``[B]`` in [0, number of modalities).
      nulls: ``{name: null}`` for some or all of them, as in `modality_dropout`; default zeros.

    Returns:
      ``(embeddings, keep)``, as of `modality_dropout_set`.

    Raises:
      ValueError: if names, shapes or dtypes do not fit.

    Cost:
      One pass over the embeddings.
      XLA at 2 times [1024, 512]: at most 1.2 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0 times
      its memory more.

    Use:
      Part of: `modality_dropout_set`.
      When: Call it with given masks: to evaluate each combination of modalities, or to repeat one for a teacher.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> batch = {"text": jnp.ones((2, 1)), "video": jnp.ones((2, 1))}
      >>> keep = {"text": jnp.array([True, False]), "video": jnp.array([False, False])}
      >>> out, keep = rj.inputs.apply_modality_dropout_set(batch, keep, fallback=jnp.array([0, 1]))
      >>> keep["text"].tolist(), keep["video"].tolist()
      ([True, False], [False, True])

    References:
      McKee et al., Language-Guided Music Recommendation for Video via Prompt Analogies, 2023, arXiv 2306.09327.
    """
    name = "inputs.apply_modality_dropout_set"
    embeddings = _check_set(name, embeddings)
    batch = next(iter(embeddings.values())).shape[0]
    keep = {m: _check_keep(name, mask, batch) for m, mask in _of_names(name, "keep", keep, embeddings).items()}
    if fallback is not None:
        fallback = checks.integers(name, "fallback", fallback, shape=(batch,))
    return _replace_set(embeddings, keep, fallback, _check_nulls(name, nulls, embeddings))


def _replace_set(
    embeddings: dict[str, Array], keep: dict[str, Array], fallback: Array | None, nulls: dict[str, Array | None]
) -> tuple[dict[str, Array], dict[str, Array]]:
    if fallback is not None:
        some = jnp.any(jnp.stack(list(keep.values())), axis=0)
        keep = {m: keep[m] | (~some & (fallback == i)) for i, m in enumerate(sorted(keep))}
    return {m: _replace(x, keep[m], nulls[m]) for m, x in embeddings.items()}, keep


def _replace(embedding: Array, keep: Array, null: Array | None) -> Array:
    keep = keep.reshape(keep.shape + (1,) * (embedding.ndim - 1))
    if null is None:
        return jnp.where(keep, embedding, 0)
    null = jnp.broadcast_to(null.astype(embedding.dtype), embedding.shape)
    return jnp.where(keep, embedding, sharding.placed_like(null, embedding))


def _keep(key: Key, embedding: Array, rate: Any) -> Array:
    """True with probability ``1 - rate`` for each example, from float32 uniforms; at a rate of NaN all are kept."""
    uniform = jax.random.uniform(key, embedding.shape[:1], jnp.float32, out_sharding=_rows(embedding))
    return ~(uniform < jnp.asarray(rate, jnp.float32))


def _rows(x: Array) -> Any:
    """The sharding over examples, on an Explicit mesh."""
    named = sharding.explicit_sharding(x)
    return None if named is None else named.update(spec=jax.P(named.spec[0]))


def _check_embedding(name: str, argument: str, value: Any) -> Array:
    return checks.floating(name, argument, value, min_ndim=1)


def _check_rate(name: str, argument: str, rate: Any) -> None:
    checks.number(name, argument, rate, low=0.0, high=1.0)


def _check_keep(name: str, keep: Any, batch: int) -> Array:
    checked = checks.example_mask(name, "keep", keep, (batch,))
    if checked is None:
        checks.fail(name, "keep", f"a boolean mask of shape [{batch}]", keep)
    return checked


def _check_null(name: str, argument: str, null: Any, embedding: Array) -> Array | None:
    if null is None:
        return None
    null = checks.floating(name, argument, null)
    if null.shape not in (embedding.shape[1:], embedding.shape):
        text = f"an embedding of one example, of shape {list(embedding.shape[1:])}, or of all, {list(embedding.shape)}"
        checks.fail(name, argument, text, null)
    return null


def _check_nulls(name: str, nulls: Any, embeddings: dict[str, Array]) -> dict[str, Array | None]:
    nulls = {} if nulls is None else nulls
    if not isinstance(nulls, Mapping) or not set(nulls) <= set(embeddings):
        checks.fail(name, "nulls", f"a dictionary with names among {sorted(embeddings)}", nulls)
    return {m: _check_null(name, "nulls", nulls.get(m), x) for m, x in embeddings.items()}


def _check_set(name: str, embeddings: Any) -> dict[str, Array]:
    if not isinstance(embeddings, Mapping) or not embeddings or not all(isinstance(m, str) for m in embeddings):
        checks.fail(name, "embeddings", "a dictionary {name: array} of at least one modality", embeddings)
    checked = {m: _check_embedding(name, "embeddings", x) for m, x in embeddings.items()}
    if len({x.shape[0] for x in checked.values()}) > 1:
        text = "arrays [B, ...] of one batch size"
        checks.fail(name, "embeddings", text, {m: x.shape for m, x in checked.items()})
    return checked


def _of_names(name: str, argument: str, values: Any, embeddings: dict[str, Array]) -> dict[str, Any]:
    if not isinstance(values, Mapping) or set(values) != set(embeddings):
        checks.fail(name, argument, f"a dictionary with the names {sorted(embeddings)}", values)
    return dict(values)
