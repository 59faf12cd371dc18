"""Kernel ridge regression on a few labelled examples, added to a zero-shot classifier: ProKeR."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Strength


def proker_fit(keys: Any, key_labels: Any, key_logits: Any, *, beta: Any = 1.0, weight: Strength = 0.1) -> Array:
    r"""Fits the correction of a zero-shot classifier to a few labelled examples, in closed form.

    Formula:
      .. math:: \alpha = (G / w + I)^{-1} (Y - Z), \quad G_{ij} = \exp(-\beta (1 - \langle x_i, x_j \rangle))

      with x the keys, Y their labels one-hot and Z their zero-shot logits. `proker_predict` applies it. A large w leaves
      the residuals Y - Z, which makes the prediction kernel smoothing, as Tip-Adapter; as w goes to 0 so does
      :math:`\alpha`.

    Args:
      keys: float ``[N, D]``: features of the labelled examples, of unit norm.
      key_labels: integer class ids ``[N]``, or probabilities ``[N, K]``.
      key_logits: float ``[N, K]``: plain cosines with the text features, not scaled by a temperature.
      beta: :math:`\beta`, at least 0, default 1, a number or a traced scalar; 0.5 to 3 are worth a search.
      weight: w, at least 0, default 0.1, a number or a traced scalar; 0.001 to 1 are worth a search. 0 gives 0: the
        zero-shot classifier.

    Returns:
      :math:`\alpha`, ``[N, K]``, in float32 or better. An id outside [0, K) makes it NaN, so that a wrong label is seen.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``beta`` or ``weight`` is negative or not finite.

    Cost:
      One Cholesky factorisation: N^3 / 3 multiply-adds and N^2 numbers of memory, once; nothing is trained. XLA does not count
      it. Examples sharded over devices are gathered on each. float32 serves as long as N / w stays well below 1e7; beyond, give
      float64.
      XLA at 2 times [1600, 512]: at most 1.2 times the FLOPs and 3.8 times the bytes of the product of both sets, and 1.4 times
      its memory more.

    Use:
      For: few labels, fine-tuning.
      When: A zero-shot classifier of images by text and 1 to 16 labelled images a class: a closed form, no training. On digits
        with four shots a corrupted classifier improved in every draw. Search beta and weight on a validation set.
      Not when: Some ten thousand examples: its cost is cubic, so fine-tune. There is nothing to validate on: the right weight
        spans three decades. The zero-shot part is useless: its residuals are then all there is.
      Badly with: Logits scaled by CLIP's 100: give plain cosines. Features of other norm than 1, for which the kernel is wrong.
        Augmented copies of the shots at the same weight. Noisy labels, which a large weight copies.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> z = jnp.array([[0.6, 0.2], [0.1, 0.5]])
      >>> alphas = rj.losses.proker_fit(jnp.eye(2), jnp.array([0, 1]), z, weight=0.5)
      >>> [[round(float(a), 4) for a in row] for row in alphas]
      [[0.1506, -0.1144], [-0.0703, 0.1947]]

    References:
      Bendou et al., ProKeR: A Kernel Perspective on Few-Shot Adaptation of Large Vision-Language Models, 2025, CVPR, arXiv
      2501.11175. As the authors' code, in which the correction is w times the solution of kernel ridge regression with penalty
      w; ``proker_predict(exact=True)`` is the solution itself.
    """
    name = "losses.proker_fit"
    keys = checks.floating(name, "keys", keys, ndim=2)
    key_logits = checks.floating(name, "key_logits", key_logits, shape=(keys.shape[0], None))
    num_classes = key_logits.shape[1]
    labels = checks.array(name, "key_labels", key_labels)
    is_ids = bool(jnp.issubdtype(labels.dtype, jnp.integer))
    if labels.dtype == jnp.bool_ or labels.shape != (keys.shape[:1] if is_ids else key_logits.shape):
        expected = f"integer class ids [{keys.shape[0]}] or probabilities {list(key_logits.shape)}"
        checks.fail(name, "key_labels", expected, labels)
    checks.number(name, "beta", beta, low=0.0)
    checks.number(name, "weight", weight, low=0.0)
    dtype = trees.accumulator(keys, key_logits, *(() if is_ids else (labels,)))
    x, z = (sharding.replicate(v).astype(dtype) for v in (keys, key_logits))
    y = sharding.replicate(labels)
    if is_ids:
        y = y.astype(jnp.promote_types(y.dtype, jnp.int32))
        wrong = (y < 0) | (y >= num_classes)
        y = jnp.where(wrong[:, None], jnp.nan, jax.nn.one_hot(y, num_classes, dtype=dtype))
    w = jnp.asarray(weight, dtype)
    some = w > 0
    system = _kernel(x, x, beta, dtype) / jnp.where(some, w, 1) + jnp.eye(x.shape[0], dtype=dtype)
    solution = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(system, lower=True), y.astype(dtype) - z)
    return sharding.rows_like(jnp.where(some, solution, 0), keys)


def proker_predict(
    queries: Any,
    query_logits: Any,
    keys: Any,
    alphas: Any,
    *,
    beta: Any = 1.0,
    weight: Any = None,
    exact: bool = False,
) -> Array:
    r"""Zero-shot logits with the correction that `proker_fit` found.

    Formula:
      .. math:: z + \sum_j \exp(-\beta (1 - \langle q, x_j \rangle)) \, \alpha_j

    Args:
      queries: float ``[B, D]``: features of the examples, of unit norm.
      query_logits: float ``[B, K]``: their zero-shot logits z, on the scale of those that were fitted.
      keys: float ``[N, D]``: those that were fitted.
      alphas: float ``[N, K]``: the result of `proker_fit`.
      beta: that of the fit.
      weight: that of the fit; asked for by ``exact`` alone, which divides by it. Above 0.
      exact: divide the correction by ``weight``: kernel ridge regression with that penalty, which meets the labels of the
        keys as the weight goes to 0. Default False, as the authors' code.

    Returns:
      Logits ``[B, K]`` in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, a number is out of range, or ``exact`` lacks ``weight``.

    Cost:
      2 B N (D + K) FLOPs and B N numbers of memory. Queries sharded over devices stay there; keys and their correction are
      gathered on each.
      XLA at [1600, 512]: at most 1.4 times the FLOPs and 2.4 times the bytes of the product of both sets, and 0.34 times its
      memory more.

    Use:
      Part of: `proker_fit`.
      When: Call it at test with the fit's keys and beta. ``exact=True`` where kernel ridge regression itself is meant, with a
        weight chosen anew for it.
      Badly with: A scale on ``query_logits`` that the fit did not have. Softmax at temperature 1 of its result: multiply by the
        zero-shot scale afterwards.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> z = jnp.array([[0.6, 0.2], [0.1, 0.5]])
      >>> alphas = rj.losses.proker_fit(jnp.eye(2), jnp.array([0, 1]), z, weight=0.5)
      >>> logits = rj.losses.proker_predict(jnp.array([[0.8, 0.6]]), jnp.array([[0.4, 0.3]]), jnp.eye(2), alphas)
      >>> [round(float(x), 4) for x in logits[0]]
      [0.4762, 0.3368]

    References:
      Bendou et al., ProKeR: A Kernel Perspective on Few-Shot Adaptation of Large Vision-Language Models, 2025, CVPR, arXiv
      2501.11175.
    """
    name = "losses.proker_predict"
    queries = checks.floating(name, "queries", queries, ndim=2)
    query_logits = checks.floating(name, "query_logits", query_logits, shape=(queries.shape[0], None))
    keys = checks.floating(name, "keys", keys, shape=(None, queries.shape[1]))
    alphas = checks.floating(name, "alphas", alphas, shape=(keys.shape[0], query_logits.shape[1]))
    checks.number(name, "beta", beta, low=0.0)
    if weight is not None:
        checks.number(name, "weight", weight, low=0.0, open_low=True)
    if checks.boolean(name, "exact", exact) and weight is None:
        checks.fail(name, "weight", "that of the fit, where exact is asked", weight)
    dtype = trees.accumulator(queries, query_logits, keys, alphas)
    x, alphas = (sharding.replicate(v).astype(dtype) for v in (keys, alphas))
    correction = jnp.einsum("bn,nk->bk", _kernel(queries.astype(dtype), x, beta, dtype), alphas, precision="highest")
    return query_logits.astype(dtype) + (correction / jnp.asarray(weight, dtype) if exact else correction)


def _kernel(a: Array, b: Array, beta: Any, dtype: Any) -> Array:
    # In full precision: the system that is solved with it may be ill-conditioned.
    return jnp.exp(jnp.asarray(beta, dtype) * (jnp.einsum("id,jd->ij", a, b, precision="highest") - 1))
