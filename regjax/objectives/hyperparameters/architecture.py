"""Weights and architecture learned together: each from a loss of its own, in one gradient."""

from collections.abc import Callable
from typing import Any, NamedTuple

from regjax.core import checks, trees
from regjax.core.types import Array, PyTree
from regjax.objectives.lift import LossFn, freeze, scalar


class SearchParams(NamedTuple):
    """What an architecture search trains: the weights, scores of sparse layers among them, and the architecture's parameters."""

    weights: Any
    arch: Any


def dass_objective(weights_loss: Callable[..., Any], arch_loss: Callable[..., Any], *, has_aux: bool = False) -> LossFn:
    r"""A loss whose gradient trains weights on training data and the architecture on validation data, both with sparse layers.

    Formula:
      .. math:: L(w, \alpha) = L_{train}(w, sg(\alpha)) + L_{val}(sg(w), \alpha)

      With sparse operations (`regjax.layers.SparseLinear`, `SparseConv`) among the candidates, both losses see the masks of w's
      scores, so that the architecture is chosen for the sparse network and not pruned afterwards. A mixed operation is
      :math:`\sum_o softmax(\alpha)_o \, o(x)`. The architecture's gradient is of first order: w counts as fixed.

      Published order: weights with dense masks; scores with the weights fixed; weights with the masks fixed, with ``optax`` masks
      or NNX filters for what each stage trains; the architecture's parameters learn in the last. Where all of them learn
      together from the start, sparse operations may lag behind and not be chosen (so on handwritten digits).

    Args:
      weights_loss: ``f(weights, arch, batch) -> scalar``, the loss that w descends.
      arch_loss: ``f(weights, arch, batch) -> scalar``, the loss that the architecture descends; often the same function.
      has_aux: whether both return ``(scalar, aux)``.

    Returns:
      ``loss_fn(params, train_batch, valid_batch, **kwargs)`` with ``params = SearchParams(weights, arch)``: the sum of the two
      losses, or ``(sum, (aux of weights_loss, aux of arch_loss))``. Keywords go to both. Its gradient by ``weights`` is that of
      ``weights_loss`` on the training batch, and by ``arch`` that of ``arch_loss`` on the validation batch.

    Raises:
      ValueError: if a loss is no function or returns no scalar, or ``params`` is no `SearchParams`.

    Cost:
      One forward and backward pass of each loss; of the second, only the path to the architecture is computed backwards.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.9 times the FLOPs and 2.8 times the bytes of a forward and
      backward pass, and 0.83 times its memory more.

    Use:
      For: sparsity budget.
      When: An architecture is to be chosen for a sparse network, by differentiable search with `SparseLinear` and `SparseConv`
        among the operations, in place of pruning the dense network's best.
      Not when: The architecture is fixed: `prune` it. Weights, scores and architecture would learn together from the start: on
        the digits sparse operations then lagged behind and were not chosen. Keep the published stages.
      Badly with: Validation batches that also train the weights. `prune` on the same weights, a second mask over that of the
        scores.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> loss = lambda w, alpha, target: jnp.sum((jax.nn.softmax(alpha) * w - target) ** 2)
      >>> loss_fn = rj.objectives.dass_objective(loss, loss)
      >>> params = rj.objectives.SearchParams(jnp.array([2.0, 0.0]), jnp.zeros(2))
      >>> grads = jax.grad(loss_fn)(params, 1.0, 2.0)
      >>> grads.weights.tolist(), grads.arch.tolist()
      ([0.0, -1.0], [-1.0, 1.0])

    References:
      Mousavi et al., DASS: Differentiable Architecture Search for Sparse Neural Networks, 2022, arXiv 2207.06968 (the number is
      unverified), of which only the abstract was at hand: losses and stages are reconstructed. Liu et al., DARTS:
      Differentiable Architecture Search, 2019, arXiv 1806.09055 (first order).
    """
    name = "objectives.dass_objective"
    checks.function(name, "weights_loss", weights_loss)
    checks.function(name, "arch_loss", arch_loss)
    checks.boolean(name, "has_aux", has_aux)

    def loss_fn(params: Any, train_batch: PyTree, valid_batch: PyTree, **kwargs: Any) -> Any:
        if not isinstance(params, SearchParams):
            checks.fail(name, "params", "a regjax.objectives.SearchParams", params)
        by_weights, first = value(weights_loss, "weights_loss", params.weights, freeze(params.arch), train_batch, kwargs)
        by_arch, second = value(arch_loss, "arch_loss", freeze(params.weights), params.arch, valid_batch, kwargs)
        dtype = trees.accumulator(by_weights, by_arch)
        total = by_weights.astype(dtype) + by_arch.astype(dtype)
        return (total, (first, second)) if has_aux else total

    def value(fn: Any, argument: str, weights: Any, arch: Any, batch: Any, kwargs: dict[str, Any]) -> tuple[Array, PyTree]:
        out = fn(weights, arch, batch, **kwargs)
        if has_aux and not (isinstance(out, tuple) and len(out) == 2):
            checks.fail(name, argument, "a function that returns (loss, aux) where has_aux=True", out)
        loss, aux = out if has_aux else (out, None)
        return scalar(name, argument, loss, "(loss, aux) needs has_aux=True"), aux

    return loss_fn
