"""The evidence lower bound as a training loss that learns its own weight decay: DE-ELBo."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, trees
from regjax.core.sharding import explicit_sharding
from regjax.core.types import Array, Key, PyTree, Strength


def gaussian_kl_profiled(params: PyTree, sigma: Any, *, prior_mean: PyTree = None) -> Array:
    r"""The divergence of a normal posterior from a normal prior of the best variance: a penalty without a strength to tune.

    Formula:
      .. math::
        KL = \frac{1}{2} \left( P \log \tau - \sum_j \log \sigma_j^2 \right), \quad
        \tau = \frac{1}{P} \left( \|m - \mu\|^2 + \sum_j \sigma_j^2 \right)

      between N(m, diag of the squared sigmas) and N(mu, tau I), at the tau that makes it smallest. The gradient flows
      through tau; by m it is (m - mu) / tau.

    Args:
      params: m, an array or any tree of P numbers in its floating leaves.
      sigma: the posterior's standard deviation, above 0: a number or scalar array for all, or a tree of the structure and
        shapes of ``params``. ``softplus(raw_sigma)``, with ``raw_sigma`` beside the parameters and started at
        ``stretched_logit(1e-4, low=0.0, high=inf)``. Weights that start near the prior's mean and so small a sigma can stay
        there, as the strength profiled from them is large: start them at their usual size.
      prior_mean: mu, a constant tree like ``params``, such as pretrained weights; None (default): 0.

    Returns:
      A scalar in float32 or better, at least 0. Groups with a tau of their own, such as a backbone around its pretrained
      weights and a head around 0, are two calls, added.

    Raises:
      ValueError: if ``sigma`` is a number that is not above 0, or a tree does not fit ``params``.

    Cost:
      One pass over the parameters.
      XLA at 16 times [512, 512]: at most 5 times the FLOPs and 2 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      Part of: `data_emphasized_elbo`.
      When: Call it once for each group with a variance of its own: the backbone around pretrained weights, the head around 0,
        and add.
      Badly with: Weights that start near the prior's mean with a small sigma: the strength profiled from them is so large that
        they may stay there.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> kl = rj.objectives.gaussian_kl_profiled
      >>> round(float(kl(jnp.ones(2), 1.0)), 4), round(float(kl(jnp.ones(2), 0.5)), 4)
      (0.6931, 1.6094)
      >>> params = {"backbone": jnp.array([1.0, 2.0]), "head": jnp.ones(2)}
      >>> pretrained = jnp.array([1.0, 2.0])
      >>> round(float(kl(params["backbone"], 0.5, prior_mean=pretrained) + kl(params["head"], 0.5)), 4)
      1.6094

    References:
      Harvey et al., Learning Hyperparameters via a Data-Emphasized Variational Objective, 2025, arXiv 2502.01861. Written as
      P / 2 times log(1 + the squared distance over the sum of squared sigmas), which is exactly 0 at m = mu. A sigma for
      each parameter is this library's, by the same rule.
    """
    name = "objectives.gaussian_kl_profiled"
    distance, total, spread = _moments(name, params, sigma, prior_mean)
    count = sum(leaf.size for leaf in trees.float_leaves(params))
    return 0.5 * (count * jnp.log1p(distance / total) + spread)


def implied_l2_strength(params: PyTree, sigma: Any, *, num_examples: Any, kappa: Strength, prior_mean: PyTree = None) -> Array:
    r"""The strength of the L2 penalty that a data-emphasised bound amounts to at these parameters, for a report.

    Formula:
      .. math:: \lambda = \frac{1}{\kappa N \tau}

      with tau of `gaussian_kl_profiled`: the gradient of the bound's penalty by m is that of
      :math:`\frac{\lambda}{2} \|m - \mu\|^2`.

    Args:
      params: m, an array or any tree.
      sigma: the posterior's standard deviation, as in `gaussian_kl_profiled`.
      num_examples: N, the size of the training set, a number above 0.
      kappa: as in `data_emphasized_elbo`, above 0.
      prior_mean: mu, a tree like ``params``; None (default): 0.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if a number is not above 0, or a tree does not fit ``params``.

    Cost:
      One pass over the parameters.
      XLA at 16 times [512, 512]: at most 2.3 times the FLOPs and 0.56 times the bytes of a copy of its arguments, and 0.01
      times its memory more.

    Use:
      Part of: `data_emphasized_elbo`.
      When: Call it after training, to report the strength found or to train a plain model with it.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.objectives.implied_l2_strength(jnp.ones(2), 1.0, num_examples=100, kappa=0.02)), 4)
      0.25

    References:
      Harvey et al., Learning Hyperparameters via a Data-Emphasized Variational Objective, 2025, arXiv 2502.01861.
    """
    name = "objectives.implied_l2_strength"
    scale = _weight(name, num_examples, kappa)
    distance, total, _ = _moments(name, params, sigma, prior_mean)
    count = sum(leaf.size for leaf in trees.float_leaves(params))
    return count / (jnp.asarray(scale, total.dtype) * (distance + total))


def data_emphasized_elbo(nll: Any, kl: Any, *, num_examples: Any, kappa: Strength) -> Array:
    r"""The negative evidence lower bound for each example, with the likelihood emphasised.

    Formula:
      .. math:: \bar{l} + \frac{KL}{\kappa N}

      :math:`\kappa = 1` is the evidence lower bound, which underfits where there are more parameters than examples;
      :math:`\kappa = D / N` with the D parameters that the divergence counts, the recommended one, makes it KL / D.

    Args:
      nll: scalar, the mean negative log-likelihood of a batch at one draw of `sample_posterior`.
      kl: scalar, `gaussian_kl_profiled`, or a sum of several.
      num_examples: N, the size of the training set (not of the batch), a number above 0.
      kappa: above 0; a number or a traced scalar.

    Returns:
      A scalar in the dtype of ``nll``.

    Raises:
      ValueError: if ``nll`` or ``kl`` is no floating scalar, or a number is not above 0.

    Cost:
      None.

    Use:
      For: compute budget, few labels, fine-tuning.
      When: The strength of a decay, or of the pull to pretrained weights, is to be learnt in one run without validation data.
        On a noisy linear probe of digits it was as good as the best of a grid, where kappa=1 underfits.
      Not when: Honest posterior uncertainty is the aim: emphasising the data makes the posterior too narrow. What is to be
        tuned is no normal prior (dropout, augmentation): `self_tuning`.
      Badly with: `weights.l2`, `l2_sp` or decay in the optimiser, which count the prior twice. The batch's size in place of the
        set's. bfloat16 weights, which round a sigma of 1e-4 off. A sum of losses in place of the mean.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> def loss_fn(params, key, x):
      ...     w = rj.objectives.sample_posterior(key, params["mean"], params["raw_sigma"])
      ...     kl = rj.objectives.gaussian_kl_profiled(params["mean"], jax.nn.softplus(params["raw_sigma"]))
      ...     return rj.objectives.data_emphasized_elbo(jnp.mean((x @ w - 1) ** 2), kl, num_examples=100, kappa=2 / 100)
      >>> params = {"mean": jnp.ones(2), "raw_sigma": rj.objectives.stretched_logit(1e-4, low=0.0, high=float("inf"))}
      >>> round(float(loss_fn(params, jax.random.key(0), jnp.ones((4, 2)))), 2)
      10.21

    References:
      Harvey et al., Learning Hyperparameters via a Data-Emphasized Variational Objective, 2025, arXiv 2502.01861 (the authors'
      code; their low-rank priors are not here).
    """
    name = "objectives.data_emphasized_elbo"
    nll, kl = (_scalar(name, argument, value) for argument, value in (("nll", nll), ("kl", kl)))
    scale = _weight(name, num_examples, kappa)
    return nll + (kl / jnp.asarray(scale, trees.accumulator(kl))).astype(nll.dtype)


def apply_sample_posterior(params: PyTree, raw_sigma: Any, noise: PyTree) -> PyTree:
    r"""A draw from the posterior with the noise given.

    Formula:
      .. math:: w = m + softplus(r) \, \epsilon

    Args:
      params: m, an array or any tree; leaves that are not floating pass.
      raw_sigma: r, a number or scalar array for all, or a tree of the structure and shapes of ``params``.
      noise: a tree of the structure and shapes of ``params``, standard normal.

    Returns:
      A tree like ``params``.

    Raises:
      ValueError: if a tree does not fit ``params``.

    Cost:
      One pass over the parameters.
      XLA at 24 times [512, 512]: at most 3 times the FLOPs and 0.74 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      Part of: `sample_posterior`.
      When: Call it with given noise: for the same draw in two passes, or an antithetic pair.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> w = rj.objectives.apply_sample_posterior(jnp.ones(2), 0.0, jnp.array([0.0, 1.0]))
      >>> [round(float(x), 4) for x in w]
      [1.0, 1.6931]

    References:
      Those of `data_emphasized_elbo`.
    """
    name = "objectives.apply_sample_posterior"
    checks.same_structure(name, "noise", noise, params, "params")
    means, raw = trees.float_leaves(params), _each(name, "raw_sigma", raw_sigma, params)
    flags = [trees.is_float(leaf) for leaf in jax.tree.leaves(params)]
    draws = [jnp.asarray(leaf) for leaf, flag in zip(jax.tree.leaves(noise), flags, strict=True) if flag]
    return trees.with_float_leaves(params, [_draw(m, r, e) for m, r, e in zip(means, raw, draws, strict=True)])


def sample_posterior(key: Key, params: PyTree, raw_sigma: Any) -> PyTree:
    r"""A draw from the normal posterior around the parameters, at which one ordinary forward pass is made.

    Formula:
      .. math:: w = m + softplus(r) \, \epsilon, \quad \epsilon \sim N(0, I)

      differentiable by m and r.

    Args:
      key: a random key.
      params: m, an array or any tree; leaves that are not floating pass. Running statistics are no part of it.
      raw_sigma: r, a number or scalar array for all, or a tree of the structure and shapes of ``params``.

    Returns:
      A tree like ``params``. In bfloat16 a sigma of 1e-4 is rounded off: keep float32 parameters, cast inside.

    Raises:
      ValueError: if ``raw_sigma`` does not fit ``params``, or ``key`` is no key.

    Cost:
      One normal number and one pass for each parameter; no extra pass of the model.
      XLA at 16 times [512, 512]: at most 56 times the FLOPs and 4.7 times the bytes of a copy of its arguments, and 0.35 times
      its memory more.

    Use:
      Part of: `data_emphasized_elbo`.
      When: Call it once a step, before the forward pass. At test use the means, or average predictions over draws.
      Badly with: BatchNorm averages among the parameters, which are not to be perturbed. Weights in bfloat16.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> w = rj.objectives.sample_posterior(jax.random.key(0), {"kernel": jnp.ones((2, 3))}, -100.0)
      >>> w["kernel"].tolist()
      [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]

    References:
      Those of `data_emphasized_elbo`.
    """
    name = "objectives.sample_posterior"
    key = checks.key(name, key)
    means, raw = trees.float_leaves(params), _each(name, "raw_sigma", raw_sigma, params)
    drawn = []
    for i, (mean, r) in enumerate(zip(means, raw, strict=True)):
        own, dtype = jax.random.fold_in(key, i), trees.accumulator(mean)
        noise = jax.random.normal(own, mean.shape, dtype, out_sharding=explicit_sharding(mean))
        drawn.append(_draw(mean, r, noise))
    return trees.with_float_leaves(params, drawn)


def _draw(mean: Array, raw: Array, noise: Array) -> Array:
    wide = trees.accumulator(mean)
    return (mean.astype(wide) + jax.nn.softplus(raw.astype(wide)) * noise.astype(wide)).astype(mean.dtype)


def _moments(name: str, params: PyTree, sigma: Any, prior_mean: PyTree) -> tuple[Array, Array, Array]:
    """The squared distance to the prior's mean, the sum of squared sigmas, and how unequal the sigmas are."""
    if prior_mean is not None:
        checks.same_structure(name, "prior_mean", prior_mean, params, "params")
    means, sigmas = trees.float_leaves(params), _each(name, "sigma", sigma, params, low=0.0, open_low=True)
    dtype = trees.accumulator(*means)
    zero = jnp.zeros((), dtype)
    if not means:
        return zero, zero + 1, zero
    offsets = means
    if prior_mean is not None:
        pairs = zip(jax.tree.leaves(prior_mean), jax.tree.leaves(params), strict=True)
        centres = [jnp.asarray(c) for c, p in pairs if trees.is_float(p)]
        offsets = [m.astype(dtype) - jax.lax.stop_gradient(c).astype(dtype) for m, c in zip(means, centres, strict=True)]
    distance = trees.sum_squares(offsets).astype(dtype)
    count = sum(mean.size for mean in means)
    if all(s is sigmas[0] for s in sigmas) and sigmas[0].ndim == 0:
        return distance, count * jnp.square(sigmas[0].astype(dtype)), zero
    wide = [s.astype(dtype) for s in sigmas]
    total = sum((jnp.sum(jnp.square(s)) for s in wide), zero)
    logs = sum((jnp.sum(jnp.log(s)) for s in wide), zero)
    return distance, total, count * jnp.log(total / count) - 2 * logs


def _each(name: str, argument: str, value: Any, params: PyTree, **limits: Any) -> list[Array]:
    """One array for every floating leaf of ``params``: the same scalar, or the leaves of a tree of its shapes."""
    is_array = isinstance(value, jax.Array | np.ndarray)
    if (is_array and value.ndim == 0) or (not is_array and jax.tree_util.all_leaves([value])):
        checks.number(name, argument, value, **limits)
        dtype = trees.accumulator(value) if is_array else trees.accumulator(*trees.float_leaves(params))
        return [jnp.asarray(value, dtype)] * len(trees.float_leaves(params))
    checks.same_structure(name, argument, value, params, "params")
    pairs = zip(jax.tree.leaves(value), jax.tree.leaves(params), strict=True)
    return [checks.floating(name, argument, v) for v, p in pairs if trees.is_float(p)]


def _scalar(name: str, argument: str, value: Any) -> Array:
    if not isinstance(value, jax.Array):
        checks.number(name, argument, value)
        value = jnp.asarray(value, jnp.result_type(float))
    if value.shape != () or not trees.is_float(value):
        checks.fail(name, argument, "a floating-point scalar", value)
    return value


def _weight(name: str, num_examples: Any, kappa: Any) -> Any:
    """What divides the divergence."""
    checks.number(name, "num_examples", num_examples, low=0.0, open_low=True)
    checks.number(name, "kappa", kappa, low=0.0, open_low=True)
    return kappa * num_examples
