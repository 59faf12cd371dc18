"""How much the loss rises near the weights: in the worst direction, and on average."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, Key, PyTree, Strength, Where
from regjax.diagnostics.curvature import _vectors


def worst_case_sharpness(
    loss_fn: Callable[..., Array],
    params: PyTree,
    *batches: PyTree,
    rho: Strength = 0.05,
    num_steps: int = 10,
    step_size: Any = None,
    adaptive: bool = False,
    where: Where = "all",
    start: PyTree = None,
) -> Array:
    r"""The largest rise of the loss within a ball around the weights, found by gradient ascent.

    Formula:
      The mean over batches b of

      .. math:: \max_{\|u\| \le \rho} \; f_b(w + c \odot u) - f_b(w)

      with c = 1, or :math:`c = |w|` if ``adaptive``, which does not change where neurons are rescaled. The ascent:

      .. math:: u \leftarrow P_\rho\left(u + \eta \, \frac{c \odot g}{\|c \odot g\|}\right), \quad g = \nabla f_b(w + c \odot u)

      and the largest loss on its way counts, that at w among them.

    Args:
      loss_fn: ``loss_fn(params, *batch) -> scalar``.
      params: the weights w; leaves that are no floats are held fixed. Low-precision weights are widened to float32 first.
      *batches: the arguments after ``params``, trees of arrays ``[N, B, ...]`` with the batches on axis 0. The sharpness grows as
        B falls: compare at one size.
      rho: the radius, over all leaves together, at least 0, default 0.05; around 0.5 if ``adaptive``.
      num_steps: the steps of the ascent, at least 1, default 10. 1 is the perturbation of SAM.
      step_size: the length of a step, above 0; None (default): 2.5 rho / ``num_steps``.
      adaptive: whether c is the size of the weights, default False.
      where: which leaves are moved, as elsewhere, by default ``"all"`` floating ones.
      start: where the ascent starts, a tree like ``params``: u, shortened to the ball; None (default): 0. At weights where the
        gradient is 0 the ascent cannot leave 0, and needs a random start.

    Returns:
      A scalar, at least 0, in float32 or better.

    Raises:
      ValueError: if ``loss_fn`` is no function or returns no scalar, the batches disagree on their number, or an option does not
        fit.

    Cost:
      ``num_steps`` forward and backward passes and two forward ones for each batch, one batch in memory at a time. XLA counts the
      body of the loop once.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 2 times the FLOPs and 3.7 times the bytes of a forward and
      backward pass, and 1 times its memory more.

    Use:
      For: sharp minima.
      When: Networks of one architecture and training set are compared at one radius and batch size, or a run of `sam` is
        checked at its own rho. ``adaptive`` where layers could be rescaled against each other.
      Not when: Generalisation of different recipes is to be predicted: Andriushchenko et al. report hardly any relation in
        modern settings. Curvature alone is asked: `top_eigenvalue` needs no radius.
      Badly with: Losses near 0 of very sure networks, which read flat by their scale: compare at equal training loss. Dropout
        or batch statistics in the loss, and a start at a gradient of 0 without ``start``.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> loss_fn = lambda w: (w[0] ** 2 + 4 * w[1] ** 2) / 2
      >>> sharpness = rj.diagnostics.worst_case_sharpness(loss_fn, jnp.array([1.0, 0.0]), rho=0.5, num_steps=2)
      >>> round(float(sharpness), 4)
      0.625

    References:
      Keskar et al., On Large-Batch Training for Deep Learning: Generalization Gap and Sharp Minima, 2017, arXiv 1609.04836; the
      form and its adaptive one are those of Andriushchenko et al., A Modern Look at the Relationship between Sharpness and
      Generalization, 2023, arXiv 2302.07011, with plain projected ascent in place of their automatic step size.
    """
    name = "diagnostics.worst_case_sharpness"
    loss = _vectors.loss_of(name, loss_fn, params)
    _vectors.check_batches(name, batches)
    checks.number(name, "rho", rho, low=0.0)
    checks.integer(name, "num_steps", num_steps, low=1)
    checks.boolean(name, "adaptive", adaptive)
    leaves = _vectors.floats(params)
    scales = _scales(name, params, adaptive, where)
    radius = jnp.asarray(rho, trees.accumulator(*leaves))
    if step_size is None:
        length = 2.5 * radius / num_steps
    else:
        length = jnp.asarray(checks.number(name, "step_size", step_size, low=0.0, open_low=True), radius.dtype)
    first = [jnp.zeros_like(leaf) for leaf in leaves]
    if start is not None:
        checks.same_structure(name, "start", start, params, "params")
        given = _floats_of(start, params)
        first = _vectors.shorten([v.astype(x.dtype) for v, x in zip(given, first, strict=True)], radius)

    def rise(*batch: PyTree) -> Array:
        at = lambda u: loss([w + c * v for w, c, v in zip(leaves, scales, u, strict=True)], *batch)
        clean = loss(leaves, *batch)

        def step(carry: tuple[list[Array], Array], _: None) -> Any:
            u, most = carry
            value, slope = jax.value_and_grad(at)(u)  # by u, so that it is c * g
            ahead = [v + length.astype(v.dtype) * d for v, d in zip(u, _vectors.unit(slope), strict=True)]
            return (_vectors.shorten(ahead, radius), jnp.maximum(most, value)), None

        (u, most), _ = jax.lax.scan(step, (first, clean), length=num_steps)
        # In a ball of no size the loss is the same, whatever rounding says.
        return jnp.where(radius > 0, jnp.maximum(most, at(u)) - clean, 0)

    return jnp.mean(_vectors.over_batches(name, rise, batches))


def average_case_sharpness(
    key: Key,
    loss_fn: Callable[..., Array],
    params: PyTree,
    *batches: PyTree,
    rho: Strength = 0.05,
    num_samples: int = 16,
    adaptive: bool = False,
    where: Where = "all",
) -> Array:
    r"""The mean rise of the loss under Gaussian noise on the weights.

    Formula:
      .. math:: E_{z \sim N(0, 1)} \left[ f(w + \rho \, c \odot z) - f(w) \right]

      with c = 1, or :math:`c = |w|` if ``adaptive``; averaged over batches. For small rho it is half of
      :math:`\rho^2 \sum_i c_i^2 H_{ii}`: the trace of the Hessian.

    Args:
      key: a random key.
      loss_fn: ``loss_fn(params, *batch) -> scalar``.
      params: the weights w; leaves that are no floats are held fixed. Low-precision weights are widened to float32 first.
      *batches: the arguments after ``params``, trees of arrays ``[N, B, ...]`` with the batches on axis 0.
      rho: the standard deviation of the noise on each weight, at least 0, default 0.05. The whole perturbation is
        about :math:`\rho \sqrt P` long, unlike in `worst_case_sharpness`.
      num_samples: how many draws of the noise, default 16, each seen by all batches.
      adaptive: whether the noise on a weight is in proportion to its size, default False.
      where: which leaves are moved, by default ``"all"`` floating ones.

    Returns:
      A scalar in float32 or better; negative where the loss falls on average.

    Raises:
      ValueError: if ``loss_fn`` is no function or returns no scalar, the batches disagree on their number, or an option does not
        fit.

    Cost:
      ``num_samples`` + 1 forward passes for each batch, one at a time. XLA counts the body of the loop once.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 0.93 times the FLOPs and 2.7 times the bytes of a forward and
      backward pass, and 1.3 times its memory more.

    Use:
      For: sharp minima.
      When: Robustness to noise on the weights, such as rounding or `gradient_noise`, or an estimate of the Hessian's trace:
        forward passes only. ``adaptive`` is noise in proportion to the weight.
      Not when: The steepest direction is asked: a few sharp ones are lost in the mean over millions. Values for networks of
        different size differ by the length of the noise alone.
      Badly with: Kernels before a normalisation without ``adaptive``: noise of one size weighs more on short weights. Few
        ``num_samples`` at large rho, where single draws decide.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> rise = lambda samples: rj.diagnostics.average_case_sharpness(
      ...     jax.random.key(0), lambda w: jnp.sum(w**2), jnp.ones(100), rho=0.1, num_samples=samples)
      >>> abs(float(rise(400)) - 100 * 0.1**2) < 0.3
      True

    References:
      Andriushchenko et al., A Modern Look at the Relationship between Sharpness and Generalization, 2023, arXiv 2302.07011.
    """
    name = "diagnostics.average_case_sharpness"
    checks.key(name, key)
    loss = _vectors.loss_of(name, loss_fn, params)
    _vectors.check_batches(name, batches)
    checks.number(name, "rho", rho, low=0.0)
    checks.integer(name, "num_samples", num_samples, low=1)
    checks.boolean(name, "adaptive", adaptive)
    leaves = _vectors.floats(params)
    scales = [jnp.asarray(rho, leaf.dtype) * c for leaf, c in zip(leaves, _scales(name, params, adaptive, where), strict=True)]

    def at(noise: list[Array]) -> Array:
        moved = [w + c * z for w, c, z in zip(leaves, scales, noise, strict=True)]
        return _vectors.over_batches(name, lambda *batch: loss(moved, *batch), batches)

    clean = at([jnp.zeros_like(leaf) for leaf in leaves])
    # Differences of the same batch before the mean: the losses of two batches differ by more than a small perturbation does.
    rise = lambda key: jnp.mean(at(_vectors.normals(key, leaves)) - clean)
    mean = jnp.mean(jax.lax.map(rise, jax.random.split(key, num_samples)))
    return jnp.where(jnp.asarray(rho) > 0, mean, 0)


def _scales(name: str, params: PyTree, adaptive: bool, where: Where) -> list[Array]:
    """The factor c of each floating leaf, 0 where it is not moved."""
    size = jnp.abs if adaptive else jnp.ones_like
    pairs = zip(_vectors.floats(params), _vectors.flags(name, params, where), strict=True)
    return [size(w) if use else jnp.zeros_like(w) for w, use in pairs]


def _floats_of(tree: PyTree, params: PyTree) -> list[Array]:
    """The leaves of a tree where those of the parameters are floating."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(params), strict=True)
    return [jnp.asarray(leaf) for leaf, p in pairs if trees.is_float(p)]
