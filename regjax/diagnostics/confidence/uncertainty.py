"""Uncertainty from several stochastic passes: Monte Carlo dropout, and the choice of examples to label by it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, sharding, trees
from regjax.core.types import Array, Key, PyTree, Strength


class MCDropoutStatistics(NamedTuple):
    """The mean probabilities ``[..., K]`` of the passes, and five measures ``[...]`` of how uncertain they are."""

    mean_prob: Array
    predictive_entropy: Array
    expected_entropy: Array
    mutual_information: Array
    variation_ratio: Array
    variance: Array


def mc_predict(
    key: Key, apply_fn: Callable[[Key, Any], PyTree], x: Any, *, passes: int = 10, batch_size: int | None = None
) -> PyTree:
    r"""Predicts several times with dropout on, with an independent key each time.

    Formula:
      .. math:: z_t = f(k_t, x), \quad t = 1 \dots T

      with the keys :math:`k_t` split from ``key``.

    Args:
      key: a random key.
      apply_fn: ``apply_fn(key, x) -> logits``, the model in training mode for its dropout, in test mode for the rest
        (batch normalisation); also a tree of outputs.
      x: the inputs, an array or a tree of arrays.
      passes: T, at least 1, default 10.
      batch_size: how many passes run side by side; default all, by ``jax.vmap``. With 1 they need the memory of one.

    Returns:
      The outputs with a new first axis: ``[T, B, K]`` for logits ``[B, K]``.

    Raises:
      ValueError: if ``passes`` or ``batch_size`` is no integer above 0, or ``key`` is no key.

    Cost:
      T forward passes.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 12 times the FLOPs and 13 times the bytes of a forward pass, and
      4.1 times its memory more.

    Use:
      Part of: `mc_dropout_statistics`, `sequence_uncertainty`.
      When: For the passes themselves: a model trained with `dropout` or `drop_path`, normalisation on running statistics. Some
        10 passes rank examples, estimates of single entropies want tens. ``batch_size=1`` where memory is short.
      Badly with: Models without noise layers or in test mode throughout, whose passes are all equal. Batch statistics, by which
        an example's answer depends on its neighbours.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> apply_fn = lambda key, x: rj.layers.dropout(key, x, rate=0.5) @ jnp.eye(2)
      >>> rj.diagnostics.mc_predict(jax.random.key(0), apply_fn, jnp.ones((4, 2)), passes=3).shape
      (3, 4, 2)

    References:
      Gal and Ghahramani, Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep Learning, 2015, arXiv
      1506.02142. Zhang et al., STAR: Constraint LoRA with Dynamic Active Learning for Data-Efficient Fine-Tuning of Large
      Language Models, 2024, arXiv 2403.01165, with 3 passes; their released script runs them in test mode, where all are the
      same, and here dropout is on.
    """
    name = "diagnostics.mc_predict"
    key = checks.key(name, key)
    checks.function(name, "apply_fn", apply_fn)
    keys = jax.random.split(key, checks.integer(name, "passes", passes, low=1))
    if batch_size is None:
        return jax.vmap(lambda k: apply_fn(k, x))(keys)
    size = checks.integer(name, "batch_size", batch_size, low=1)
    one = lambda k: apply_fn(k, x)
    return jax.lax.map(one, keys) if size == 1 else jax.lax.map(one, keys, batch_size=size)


def mc_dropout_statistics(logits: Any) -> MCDropoutStatistics:
    r"""What several stochastic passes say about the uncertainty of each example.

    Formula:
      With :math:`p_t = softmax(z_t)`, :math:`\bar p = \frac{1}{T} \sum_t p_t` and H the entropy in nats:

      .. math:: predictive = H(\bar p), \quad expected = \frac{1}{T} \sum_t H(p_t), \quad
        mutual = \frac{1}{T} \sum_t \sum_k p_{t,k} \log \frac{p_{t,k}}{\bar p_k} = predictive - expected \ge 0

      The expected entropy is the noise in the data, the mutual information what the model does not know. The variation
      ratio is the share of passes that predict another class than most do; the variance is that of the probabilities over
      the passes, with divisor T, as a mean over classes.

    Args:
      logits: float ``[T, ..., K]``: T passes, as `mc_predict` gives them. -inf is a class that a pass rules out.

    Returns:
      ``MCDropoutStatistics(mean_prob [..., K], predictive_entropy, expected_entropy, mutual_information, variation_ratio,
      variance)``, the last five ``[...]``, in float32 or better. One pass, or equal ones, have mutual information 0.

    Raises:
      ValueError: if ``logits`` is not floating, or has no pass or no class.

    Cost:
      About twenty passes over the logits, and the memory of four arrays like them.
      XLA at [10, 1024, 100]: at most 41 times the FLOPs and 13 times the bytes of a copy of its arguments, and 2.4 times its
      memory more.

    Use:
      For: few labels, poor calibration.
      When: Noise of the data is to be told from what the model does not know: mutual information chooses examples to label,
        predictive entropy those to abstain from. The network was trained with the dropout that is on.
      Not when: One ranking by confidence is enough: the softmax of a single pass costs a T-th. With two or three passes the
        mutual information is too small on average, and the variation ratio has two or three values.
      Badly with: A `fit_temperature` of the deterministic pass, which does not fit the mean of passes. Rates changed after
        training, on which all five measures depend.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> logits = jnp.log(jnp.array([[[0.9, 0.1]], [[0.5, 0.5]]]))
      >>> s = rj.diagnostics.mc_dropout_statistics(logits)
      >>> round(float(s.predictive_entropy[0]), 4), round(float(s.mutual_information[0]), 4)
      (0.6109, 0.1017)

    References:
      Gal, Uncertainty in Deep Learning, 2016 (variation ratio, predictive entropy, mutual information). Houlsby et al.,
      Bayesian Active Learning for Classification and Preference Learning, 2011, arXiv 1112.5745. The variance of the
      probabilities is in use as a sum over classes too, K times this.
    """
    name = "diagnostics.mc_dropout_statistics"
    logits = checks.floating(name, "logits", logits, min_ndim=2)
    if 0 in (logits.shape[0], logits.shape[-1]):
        checks.fail(name, "logits", "an array with at least one pass and one class", logits)
    log_p = jax.nn.log_softmax(logits.astype(trees.accumulator(logits)), axis=-1)
    # The logarithm of the mean relative to the largest pass: equal passes then give their value exactly.
    top = jax.lax.stop_gradient(jnp.max(log_p, axis=0))
    top = jnp.where(top > -jnp.inf, top, 0)
    ratio = jnp.mean(jnp.exp(log_p - top), axis=0)
    log_mean = top + jnp.where(ratio > 0, jnp.log(jnp.where(ratio > 0, ratio, 1)), -jnp.inf)
    p, mean = jnp.exp(log_p), jnp.exp(log_mean)
    expected = jnp.mean(_entropy(p, log_p), axis=0)
    # Terms of second order in the differences, each at least 0: those of p log(p / mean) would cancel down to rounding.
    some = log_p > -jnp.inf
    apart = jnp.where(some, log_p, 0) - jnp.where(some, log_mean, 0)
    terms = jnp.where(some, p * apart - mean * jnp.expm1(apart), mean)
    mutual = jnp.mean(jnp.sum(terms, axis=-1), axis=0)
    votes = jnp.mean(jax.nn.one_hot(jnp.argmax(log_p, axis=-1), log_p.shape[-1], dtype=log_p.dtype), axis=0)
    return MCDropoutStatistics(
        mean_prob=mean,
        predictive_entropy=_entropy(mean, log_mean),
        expected_entropy=expected,
        mutual_information=jnp.maximum(mutual, 0),
        variation_ratio=1 - jnp.max(votes, axis=-1),
        variance=jnp.mean(jnp.square(p - mean), axis=(0, -1)),
    )


def sequence_uncertainty(
    logits: Any, tokens: Any, *, kind: str = "likelihood", where: Any = None, min_prob: float = 1e-6
) -> Array:
    r"""The uncertainty of a generated answer, summed over its tokens and averaged over stochastic passes.

    Formula:
      .. math:: likelihood = -\frac{1}{T} \sum_t \sum_l \log p_{t,l,y_l}, \quad
        entropy = -\frac{1}{T} \sum_t \sum_l \sum_v p_{t,l,v} \log \max(p_{t,l,v}, \epsilon)

    Args:
      logits: float ``[T, ..., L, V]``: T passes over answers of L tokens.
      tokens: integer ids ``[..., L]`` of the answer; an id outside [0, V) gives NaN, unless ``where`` leaves it out.
      kind: ``"likelihood"`` (default) or ``"entropy"``, which needs the tokens for their shape only.
      where: boolean ``[..., L]``: the tokens of the answer, without prompt and padding; default all.
      min_prob: the least probability inside the logarithm of the entropy, default 1e-6, a number in [0, 1].

    Returns:
      One number for each answer, ``[...]``, in float32 or better; a scalar for logits ``[T, L, V]``.

    Raises:
      ValueError: if a shape or dtype does not fit or an option is misspelt.

    Cost:
      A pass over the logits.
      XLA at [4, 8, 32, 1000]: at most 4.5 times the FLOPs and 2.3 times the bytes of a copy of its arguments, and 0.56 times
      its memory more.

    Use:
      For: few labels, fine-tuning.
      When: Answers of a language model are ranked for labelling: give the answer's tokens with ``where``. ``likelihood`` asks
        about this answer, ``entropy`` about all next tokens.
      Not when: Answers differ much in length: it is a sum over tokens, so the longest come first. Divide by the number of
        tokens where that is not wanted.
      Badly with: Logits that are not shifted to predict the token beside them. Passes in test mode, as in the released script,
        which add nothing to the first.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> logits = jnp.log(jnp.array([[[0.9, 0.1], [0.5, 0.5]]]))
      >>> round(float(rj.diagnostics.sequence_uncertainty(logits, jnp.array([0, 1]))), 4)
      0.7985

    References:
      Zhang et al., STAR: Constraint LoRA with Dynamic Active Learning for Data-Efficient Fine-Tuning of Large Language
      Models, 2024, arXiv 2403.01165. Probabilities clipped at 1e-6 are the authors'; that the clip is inside the logarithm
      only is uncertain: as a factor too it would add 0.44 nats to each token of a vocabulary of 32,000.
    """
    name = "diagnostics.sequence_uncertainty"
    checks.choice(name, "kind", kind, ("likelihood", "entropy"))
    checks.number(name, "min_prob", min_prob, low=0.0, high=1.0)
    logits = checks.floating(name, "logits", logits, min_ndim=3)
    tokens = checks.integers(name, "tokens", tokens, shape=logits.shape[1:-1])
    where = checks.example_mask(name, "where", where, tokens.shape)
    log_p = jax.nn.log_softmax(logits.astype(trees.accumulator(logits)), axis=-1)
    if kind == "likelihood":
        tokens = tokens.astype(jnp.promote_types(tokens.dtype, jnp.int32))
        each = jnp.mean(-jax.vmap(classes.pick, (0, None))(log_p, tokens), axis=0)
    else:
        # Clipped as a logarithm: log(0) = -inf is no limit, and nothing is.
        floor = jnp.log(jnp.asarray(min_prob, log_p.dtype))
        each = jnp.mean(_entropy(jnp.exp(log_p), jnp.maximum(log_p, floor)), axis=0)
    return jnp.sum(each if where is None else jnp.where(where, each, 0), axis=-1)


def star_uncertainty(full: Any, base: Any, *, iteration: Any, rate: Strength = 0.1, normalize_full: bool = True) -> Array:
    r"""Blends the uncertainty of the tuned model with that of the untuned one, which counts most in the first rounds.

    Formula:
      .. math:: w\, full + (1 - w)\, base, \quad w = \min(1, rate\, (iteration + 1))

      with ``full`` min-max normalised where ``normalize_full``.

    Args:
      full: float ``[N]``, the candidates' uncertainty under the model tuned so far.
      base: float ``[N]``, that under the untuned model, `normalize_scores` of the whole pool taken once at the start.
      iteration: the round of labelling, from 0; a number or a traced scalar.
      rate: what the tuned model's weight grows by in each round, at least 0, default 0.1: it counts alone from round 9 on. A
        number or a traced scalar; 0 is ``base``.
      normalize_full: whether ``full`` is brought to the scale of ``base``, default True.

    Returns:
      The scores ``[N]`` in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, ``rate`` or ``iteration`` is negative or not finite.

    Cost:
      A few passes over the scores.
      XLA at 2 times [50000]: at most 4.5 times the FLOPs and 1.4 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      For: few labels, fine-tuning.
      When: Rounds of labelling with a pretrained model that is tuned anew, as with `LoRALinear`: in the first rounds the tuned
        one has seen too little for its uncertainty to mean anything.
      Not when: There is no untuned model that can do the task at all, so that its uncertainty is noise, or one round only.
        ``rate`` times the planned rounds should reach 1.
      Badly with: A ``base`` that is normalised anew among what is left, which shifts its scale from round to round.
        ``normalize_full=False`` with sums over long answers, which outweigh ``base``.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> full, base = jnp.array([1.0, 3.0]), jnp.array([1.0, 0.0])
      >>> [round(float(s), 4) for s in rj.diagnostics.star_uncertainty(full, base, iteration=1)]
      [0.8, 0.2]

    References:
      Zhang et al., STAR: Constraint LoRA with Dynamic Active Learning for Data-Efficient Fine-Tuning of Large Language
      Models, 2024, arXiv 2403.01165. The released code blends ``full`` as it is (``normalize_full=False``), on another scale
      than ``base``. The limit of the weight at 1 is ours.
    """
    name = "diagnostics.star_uncertainty"
    full = checks.floating(name, "full", full, ndim=1)
    base = checks.floating(name, "base", base, shape=full.shape)
    checks.number(name, "iteration", iteration, low=0.0)
    checks.number(name, "rate", rate, low=0.0)
    dtype = trees.accumulator(full, base)
    weight = jnp.minimum(jnp.asarray(rate, dtype) * (jnp.asarray(iteration, dtype) + 1), 1)
    full, base = full.astype(dtype), base.astype(dtype)
    if checks.boolean(name, "normalize_full", normalize_full):
        full = _normalize(full, None)
    return weight * full + (1 - weight) * base


def normalize_scores(scores: Any, *, where: Any = None) -> Array:
    r"""Brings scores to the range from 0 to 1.

    Formula:
      .. math:: \frac{s_i - \min_j s_j}{\max_j s_j - \min_j s_j}

      and 0 for all where they are equal.

    Args:
      scores: float ``[N]``.
      where: boolean ``[N]``: the examples of the pool; default all. The others get 0.

    Returns:
      ``[N]`` in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      A few passes over the scores.
      XLA at [50000]: at most 5.6 times the FLOPs and 2.3 times the bytes of a copy of its arguments, and 0.01 times its memory
      more.

    Use:
      Part of: `star_uncertainty`.
      When: Once for the whole pool, before the first round, and wherever scores of two scales are added.
      Badly with: Outliers: one example far above the others presses all of them to 0. NaN scores spread to all.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.diagnostics.normalize_scores(jnp.array([1.0, 3.0, 2.0])).tolist()
      [0.0, 1.0, 0.5]

    References:
      Zhang et al., STAR: Constraint LoRA with Dynamic Active Learning for Data-Efficient Fine-Tuning of Large Language
      Models, 2024, arXiv 2403.01165.
    """
    name = "diagnostics.normalize_scores"
    scores = checks.floating(name, "scores", scores, ndim=1)
    where = checks.example_mask(name, "where", where, scores.shape)
    return _normalize(scores.astype(trees.accumulator(scores)), where)


def select_top(scores: Any, *, num: int, exclude: Any = None) -> Array:
    r"""The examples of highest score: the next ones to label.

    Formula:
      .. math:: i_1, \ldots, i_n \text{ with } s_{i_1} \ge \ldots \ge s_{i_n} \ge s_j \text{ for all others}

    Args:
      scores: float ``[N]``, larger is chosen first; of equal ones the first, and NaN last.
      num: n, from 1 to N.
      exclude: boolean ``[N]``, True where an example must not be chosen, as it is labelled already; default none.

    Returns:
      Integer indices ``[n]`` by falling score. -1 stands at the end where fewer than n examples are left.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``num`` is no integer from 1 to N.

    Cost:
      A sort of N; scores sharded over devices are gathered.
      XLA at [50000]: at most 21 times the FLOPs and 5 times the bytes of a copy of its arguments, and 1.3 times its memory
      more.

    Use:
      Part of: `star_uncertainty`, `mc_dropout_statistics`.
      When: At the end of a round of labelling, with all labelled examples in ``exclude``. Look for -1 at the end of the result.
      Not when: Many examples are chosen at once from near-duplicates: by score alone it takes all of them.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> scores, labelled = jnp.array([0.2, 0.9, 0.5]), jnp.array([False, True, False])
      >>> rj.diagnostics.select_top(scores, num=2, exclude=labelled).tolist()
      [2, 0]

    References:
      Zhang et al., STAR: Constraint LoRA with Dynamic Active Learning for Data-Efficient Fine-Tuning of Large Language
      Models, 2024, arXiv 2403.01165: 500 examples at first and in each round.
    """
    name = "diagnostics.select_top"
    scores = checks.floating(name, "scores", scores, ndim=1)
    num = checks.integer(name, "num", num, low=1, high=scores.size)
    out = checks.example_mask(name, "exclude", exclude, scores.shape)
    out = jnp.zeros(scores.shape, bool) if out is None else out
    falling = -scores.astype(trees.accumulator(scores))
    operands = out.astype(jnp.int8), falling, jnp.arange(scores.size, dtype=jnp.int32)
    # A stable sort by two keys rather than excluded scores of -inf, which a candidate may have too.
    gone, _, order = jax.lax.sort([sharding.replicate(x) for x in operands], num_keys=2, is_stable=True)
    return jnp.where(gone > 0, -1, order)[:num]


def _entropy(p: Array, log_p: Array) -> Array:
    """``-sum p log p`` on the last axis, with 0 log 0 = 0 in value and gradient."""
    return -jnp.sum(jnp.where(p > 0, p * jnp.where(p > 0, log_p, 0), 0), axis=-1)


def _normalize(scores: Array, where: Array | None) -> Array:
    low = jnp.min(scores if where is None else jnp.where(where, scores, jnp.inf), initial=jnp.inf)
    high = jnp.max(scores if where is None else jnp.where(where, scores, -jnp.inf), initial=-jnp.inf)
    spread = high > low
    unit = (scores - jnp.where(spread, low, 0)) / jnp.where(spread, high - low, 1)
    return jnp.where(spread if where is None else spread & where, unit, 0)
