"""Which module a robust model can spare: the module robust criticality of RiFT."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.diagnostics.curvature import _vectors


def module_robust_criticality(
    loss_fn: Callable[..., Array],
    params: PyTree,
    *batches: PyTree,
    modules: Where = None,
    epsilon: Strength = 0.1,
    num_epochs: int = 10,
    learning_rate: Any = 1.0,
) -> dict[str, Array]:
    r"""How far the loss on adversarial examples rises when one module alone is moved: the least critical ones can be fine-tuned.

    Formula:
      For each kernel w alone, the others held: in each epoch gradient ascent
      :math:`v \leftarrow v + \eta \nabla_v f_b(v)` over all batches b, then

      .. math:: v \leftarrow w + (v - w) \min\left(1, \frac{\epsilon \|w\|}{\|v - w\|}\right)

      from which the next epoch goes on. With F the mean loss over batches,

      .. math:: MRC = \max\left(0, \max_{epochs} F(v)\right) - F(w)

    Args:
      loss_fn: ``loss_fn(params, *batch) -> scalar``, with batch normalisation in evaluation mode.
      params: the weights of an adversarially trained model, best in float32.
      *batches: the arguments after ``params``, trees of arrays ``[N, B, ...]`` with the batches on axis 0: training examples that
        were attacked once, at these weights, and their labels.
      modules: which leaves, as ``where`` elsewhere: None (default): kernels, each of which is a module.
      epsilon: the largest relative change of a module, at least 0, default 0.1. At 0 nothing is critical.
      num_epochs: the epochs of the ascent, at least 1, default 10.
      learning_rate: :math:`\eta`, above 0, default 1.

    Returns:
      ``{path: criticality}``, scalars in float32 or better, the names of a path joined by ``/``. Negative only where even the
      ascent lowered the loss, by too large steps.

    Raises:
      ValueError: if ``loss_fn`` is no function or returns no scalar, the batches disagree on their number, a chosen leaf is not
        floating, or an option does not fit.

    Cost:
      For each module ``num_epochs`` forward and backward passes, and as many forward ones, over all batches; one program for all
      modules, one batch in memory at a time. XLA counts the body of the loop once.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.9 times the FLOPs and 3.4 times the bytes of a forward and
      backward pass, and 0.7 times its memory more.

    Use:
      For: adversarial inputs, fine-tuning.
      When: After adversarial training, to find the kernel that may be tuned on clean examples: on digits the least critical one
        about kept the robust accuracy, the most critical one lost some. Then `interpolate` between the two models.
      Not when: The model is not robust to begin with, or has hundreds of kernels: each takes an ascent of its own, so choose
        ``modules``. Bias and norm leaves are no modules.
      Badly with: Attacks made at other weights or on test images. Batch normalisation in training mode. Too large a
        ``learning_rate``, seen by negative values.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> loss_fn = lambda p: jnp.sum(p["a"]["kernel"] ** 2) / 2 + jnp.sum(p["b"]["kernel"] ** 2)
      >>> params = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.ones((2, 2))}}
      >>> criticality = rj.diagnostics.module_robust_criticality(loss_fn, params, epsilon=0.1)
      >>> {path: round(float(value), 4) for path, value in criticality.items()}
      {'a/kernel': 0.42, 'b/kernel': 0.84}

    References:
      Zhu et al., Improving Generalization of Adversarial Training via Robust Critical Fine-Tuning, 2023, arXiv 2308.02533, as in
      the authors' code; which attacks the test split, with a step of 2/225: take training examples and 2/255. RiFT then
      fine-tunes only the least critical module on clean examples (``optax.masked``), and interpolates between the two models.
    """
    name = "diagnostics.module_robust_criticality"
    loss = _vectors.loss_of(name, loss_fn, params)
    _vectors.check_batches(name, batches)
    checks.number(name, "epsilon", epsilon, low=0.0)
    checks.integer(name, "num_epochs", num_epochs, low=1)
    checks.number(name, "learning_rate", learning_rate, low=0.0, open_low=True)
    for leaf in trees.selected(name, params, modules, "modules"):
        if not trees.is_float(leaf):
            checks.fail(name, "modules", "a choice of floating leaves", leaf)
    leaves = _vectors.floats(params)
    chosen = [i for i, use in enumerate(_vectors.flags(name, params, modules, "modules")) if use]
    paths = [path for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0] if trees.is_float(leaf)]
    dtype = trees.accumulator(*leaves)
    weights = [leaves[i] for i in chosen]

    def moved(offsets: list[Array]) -> list[Array]:
        all_leaves = list(leaves)
        for i, w, d in zip(chosen, weights, offsets, strict=True):
            all_leaves[i] = w + d
        return all_leaves

    def mean_loss(offsets: list[Array]) -> Array:
        at = moved(offsets)
        return jnp.mean(_vectors.over_batches(name, lambda *batch: loss(at, *batch), batches).astype(dtype))

    def criticality(index: Array) -> Array:
        # One program serves all modules: the others' offsets stay 0.
        alone = [(jnp.arange(len(chosen)) == index)[k] for k in range(len(chosen))]

        def ascend(offsets: list[Array], batch: tuple[PyTree, ...]) -> tuple[list[Array], None]:
            slope = jax.grad(lambda d: loss(moved(d), *batch))(offsets)
            rate = [jnp.asarray(learning_rate, g.dtype) for g in slope]
            return [d + jnp.where(a, r * g, 0) for d, g, a, r in zip(offsets, slope, alone, rate, strict=True)], None

        def epoch(offsets: list[Array], _: None) -> tuple[list[Array], Array]:
            if batches:
                offsets, _ = jax.lax.scan(ascend, offsets, batches)
            else:
                offsets, _ = ascend(offsets, ())
            offsets = [
                _vectors.shorten([d], jnp.asarray(epsilon, d.dtype) * trees.safe_norm(w))[0]
                for d, w in zip(offsets, weights, strict=True)
            ]
            return offsets, mean_loss(offsets)

        still = [jnp.zeros_like(w) for w in weights]
        _, losses = jax.lax.scan(epoch, still, length=num_epochs)
        highest = jnp.maximum(jnp.max(losses), 0)
        return jnp.where(jnp.asarray(epsilon) > 0, highest - mean_loss(still), 0)

    if not chosen:
        return {}
    values = jax.lax.map(criticality, jnp.arange(len(chosen)))
    return {"/".join(trees.path_names(paths[i])): values[k] for k, i in enumerate(chosen)}
