"""Hessian alignment: the head's gradients and Hessians of several domains, drawn to their means."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, PyTree, Strength
from regjax.objectives.lift import AxisName, BoundLoss, freeze, is_zero, scalar, strength_at


def hessian_alignment(
    head_loss_fn: Callable[[PyTree, Any, Any], Array],
    *,
    method: Literal["hgp", "hutchinson"] = "hgp",
    alpha: Strength = 1e-4,
    beta: Strength = 5e-3,
    num_probes: int = 300,
    stop_mean: bool = True,
    reduce: Literal["mean", "sum"] = "mean",
    axis_name: AxisName = None,
) -> Callable[..., tuple[Array, dict[str, Array]]]:
    r"""Aligns the loss of several domains around the classifier head: its gradients there and its curvature.

    Formula:
      With :math:`L_e(\theta)` the loss of domain e as a function of the head's parameters, :math:`g_e` and :math:`H_e` its
      gradient and Hessian, and :math:`\bar L = \frac{1}{E} \sum_e L_e` with :math:`\bar g`, :math:`\bar H`:

      .. math:: \frac{1}{E} \sum_e L_e + \frac{1}{E} \sum_e \left( \alpha \lVert q_e - sg(\bar q) \rVert^2
        + \beta \lVert g_e - sg(\bar g) \rVert^2 \right)

      ``"hgp"`` takes the products :math:`q_e = H_e g_e` and :math:`\bar q = \bar H \bar g`, which is not the mean of the
      :math:`q_e`. ``"hutchinson"`` takes the diagonals, :math:`q_e = \frac{1}{R} \sum_r z_r \odot H_e z_r`, with entries
      of :math:`z_r` that are 1 or -1, drawn anew for each domain and for the mean.

    Args:
      head_loss_fn: ``head_loss_fn(head_params, features [B, ...], labels [B, ...]) -> scalar``, the mean loss of one domain.
        Third derivatives are taken: the head must be smooth, as a linear layer with cross-entropy is.
      method: ``"hgp"`` (default) or ``"hutchinson"``.
      alpha: the weight of the curvature, at least 0, default 1e-4 (1e-3 for ``"hutchinson"`` in DomainBed); a number, or a
        schedule read at the keyword ``step`` of the call.
      beta: the weight of the gradients, at least 0, default 5e-3; a number or a schedule. With both 0 the mean loss is left.
      num_probes: R, the number of random vectors of ``"hutchinson"``, default 300.
      stop_mean: whether the means are constants for the gradient (default), or take part in it.
      reduce: whether the penalty is the ``"mean"`` over the domains (default) or their ``"sum"``.
      axis_name: the mapped axis (or axes) of `jax.shard_map` or ``pmap`` over which the examples of each domain are split:
        gradients and products are averaged over it. Not needed under ``jit`` with sharded arrays.

    Returns:
      ``f(head_params, features, labels, key=None, probes=None, *, step=None) -> (total, info)``. ``features`` is a floating array
      ``[E, B, ...]`` from the backbone, through which the gradient flows on; ``labels`` any tree of arrays with E on axis 0,
      such as ``[E, B]``, or labels and a mask that ``head_loss_fn`` knows. ``"hutchinson"`` draws from ``key``, or takes
      ``probes``, a tree like the floating ``head_params`` with leaves ``[E + 1, R, ...]``, the last for the mean; ``"hgp"``
      needs neither. ``info`` has the ``"nll"`` and the ``"penalty"``; all scalars are in float32 or better.

    Raises:
      ValueError: if a strength, option or shape does not fit, ``head_loss_fn`` returns no scalar, or ``"hutchinson"`` gets
        neither a key nor probes.

    Cost:
      Of the head alone, as the backbone runs once: 5.5 times the FLOPs of its forward and backward pass for ``"hgp"``, 7.5
      with ``stop_mean=False``; about 3 R times for ``"hutchinson"``, with R copies of the head's parameters for each domain
      in memory.
      XLA at [1024, 512]: at most 5.9 times the FLOPs and 8.1 times the bytes of the loss of the head and its gradient, and 2
      times its memory more.

    Use:
      For: distribution shift.
      When: As `fishr`, with the curvature of the head as well: on coloured digits it was misled less than plain training. 'hgp'
        needs no random vectors. The authors weigh lightly, or anneal to a large weight and divide the loss by it.
      Not when: There is one domain. The head is deep or has kinks: third derivatives of it are taken. 'hutchinson' on a wide
        head, with hundreds of copies of it in memory.
      Badly with: `fishr` and `irm_penalty` at full weight, which align the same gradients. Domains of unequal batches, which
        the array needs equal or masked. Heads with dropout, whose domains then differ by noise.

    Example:
      >>> import jax, jax.numpy as jnp, optax, regjax as rj
      >>> def head_loss_fn(head, features, labels):
      ...     logits = features @ head["kernel"] + head["bias"]
      ...     return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
      >>> head = {"kernel": jnp.zeros((1, 2)), "bias": jnp.zeros(2)}
      >>> objective = rj.objectives.hessian_alignment(head_loss_fn, alpha=1.0, beta=0.0)
      >>> total, info = jax.jit(objective)(head, jnp.array([[[1.0]], [[2.0]]]), jnp.array([[0], [1]]))
      >>> round(float(info["nll"]), 4), round(float(info["penalty"]), 4)
      (0.6931, 7.0469)

    References:
      Hemati et al., Understanding Hessian Alignment for Domain Generalization, 2023, arXiv 2308.11778. The defaults are
      those of the authors' DomainBed code. Their ColoredMNIST scripts are ``stop_mean=False, reduce="sum"``, alpha = beta, a
      schedule from 1 to 91257 at step 190, by which they divide the whole loss, with a binary logistic head. They get
      :math:`H g` as :math:`\lVert g \rVert \nabla \lVert g \rVert`, which is 0 / 0 at g = 0; this is the same product
      as a directional derivative.
    """
    name = "objectives.hessian_alignment"
    checks.function(name, "head_loss_fn", head_loss_fn)
    checks.choice(name, "method", method, ("hgp", "hutchinson"))
    checks.strength(name, "alpha", alpha, low=0.0)
    checks.strength(name, "beta", beta, low=0.0)
    checks.integer(name, "num_probes", num_probes, low=1)
    checks.boolean(name, "stop_mean", stop_mean)
    checks.choice(name, "reduce", reduce, ("mean", "sum"))
    checks.axis_name(name, axis_name)

    def objective(
        head_params: PyTree, features: Any, labels: Any, key: Any = None, probes: Any = None, *, step: Any = None
    ) -> tuple[Array, dict[str, Array]]:
        weights = [strength_at(name, n, s, step, low=0.0) for n, s in (("alpha", alpha), ("beta", beta))]
        features = checks.floating(name, "features", features, min_ndim=2)
        domains = features.shape[0]
        if domains < 1:
            checks.fail(name, "features", "an array [E, B, ...] with at least one domain", features)
        for leaf in jax.tree.leaves(labels):
            if jnp.shape(leaf)[:1] != (domains,):
                checks.fail(name, "labels", f"arrays with the {domains} domains of features on axis 0", leaf)
        if method == "hutchinson":
            probes = _probes(name, head_params, domains, num_probes, key, probes)
        # Third derivatives in bfloat16 would be noise, and the head is small.
        wide = lambda x: x.astype(trees.accumulator(x))
        features = wide(features)
        leaves = [wide(leaf) for leaf in trees.float_leaves(head_params)]

        def checked(*args: Any) -> Array:
            return scalar(name, "head_loss_fn", head_loss_fn(*args))

        def gradient(leaves: list[Array], x: Array, y: Any) -> tuple[list[Array], Array]:
            loss = BoundLoss(name, checked, False, (x, y), {})
            out = loss.live_gradient(trees.with_float_leaves(head_params, leaves), axis_name)
            return out.gradient, out.value

        def mean_gradient(leaves: list[Array], x: Array, y: Any) -> list[Array]:
            each = jax.vmap(lambda x, y: gradient(leaves, x, y)[0])(x, y)
            return jax.tree.map(lambda g: jnp.mean(g, axis=0), each)

        def product(gradient_fn: Callable[..., list[Array]], leaves: list[Array], direction: list[Array]) -> list[Array]:
            return jax.jvp(gradient_fn, (leaves,), (direction,))[1]

        def curvature(gradient_fn: Callable[..., list[Array]], leaves: list[Array], along: list[Array]) -> list[Array]:
            """``H g`` along the gradient, or the mean of ``z * H z`` over the probes."""
            if method == "hgp":
                return product(gradient_fn, leaves, along)
            each = jax.vmap(lambda z: [a * b for a, b in zip(z, product(gradient_fn, leaves, z), strict=True)])(along)
            return [jnp.mean(x, axis=0) for x in each]

        gradients, losses = jax.vmap(lambda x, y: gradient(leaves, x, y))(features, labels)
        nll = jnp.mean(losses)
        penalty = jnp.zeros_like(nll)
        mean = freeze if stop_mean else lambda tree: tree
        # Constants already at the inputs, or the means' third derivatives would be traced first.
        at, x = mean((leaves, features))
        centre = mean([jnp.mean(g, axis=0) for g in gradients])
        if not is_zero(weights[0]):
            along = gradients if method == "hgp" else [z[:-1] for z in probes]
            own = jax.vmap(lambda x, y, d: curvature(lambda w: gradient(w, x, y)[0], leaves, d))(features, labels, along)
            along = centre if method == "hgp" else [z[-1] for z in probes]
            common = mean(curvature(lambda w: mean_gradient(w, x, labels), at, along))
            penalty = penalty + jnp.asarray(weights[0], nll.dtype) * _distance(own, common, reduce)
        if not is_zero(weights[1]):
            penalty = penalty + jnp.asarray(weights[1], nll.dtype) * _distance(gradients, centre, reduce)
        return nll + penalty, {"nll": nll, "penalty": penalty}

    return objective


def _distance(each: list[Array], centre: list[Array], reduce: str) -> Array:
    """The squared distances of the domains' vectors, leaves ``[E, ...]``, from one: their mean or sum."""
    total = trees.sum_squares([x - c for x, c in zip(each, centre, strict=True)])
    return total / each[0].shape[0] if reduce == "mean" and each else total


def _probes(name: str, head_params: PyTree, domains: int, num_probes: int, key: Any, probes: Any) -> list[Array]:
    """Vectors of random signs, leaves ``[E + 1, R, ...]`` like the floating ones of the head, or those given."""
    leaves = trees.float_leaves(head_params)
    if probes is None:
        if key is None:
            checks.fail(name, "key", "a random key, or probes given, for method='hutchinson'", key)
        keys = jax.random.split(checks.key(name, key), max(len(leaves), 1))
        shape = lambda leaf: (domains + 1, num_probes, *leaf.shape)
        return [jax.random.rademacher(k, shape(leaf), trees.accumulator(leaf)) for k, leaf in zip(keys, leaves, strict=False)]
    given = jax.tree.leaves(probes)
    rows = jnp.shape(given[0])[1:2] if given else ()
    want = [(domains + 1, *rows, *leaf.shape) for leaf in leaves]
    if [jnp.shape(z) for z in given] != want or rows in ((), (0,)):
        expected = f"a tree like the floating head_params with leaves [{domains + 1}, R, ...]"
        checks.fail(name, "probes", expected, [jnp.shape(z) for z in given])
    return [jnp.asarray(z).astype(trees.accumulator(leaf)) for z, leaf in zip(given, leaves, strict=True)]
