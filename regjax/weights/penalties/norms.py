"""Norm penalties on weights: l1, l2, elastic net, group lasso, sparse group lasso.

Penalties sum over entries and leaves; the strength is the caller's. Each has its proximal operator in
`regjax.weights.proximal.norms`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.weights import groups as grouping


def l1(params: PyTree, *, where: Where = None) -> Array:
    r"""The sum of absolute weights.

    Formula:
      .. math:: \sum_i |w_i|

      The gradient is ``sign(w)``, 0 at 0. Gradient steps with it never reach exact zeros: `prox_l1` does.

    Args:
      params: a parameter tree.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if ``where`` is none of these or chooses a leaf that is no float.

    Cost:
      One pass over the weights each way; no forward pass.
      XLA at 8 times [512, 512]: at most 3.3 times the FLOPs and 2.2 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      For: sparsity budget, noisy labels, unlearning.
      When: Few weights should matter, before a magnitude cut or in linear models; in sparse unlearning with `unlearning_alpha`.
        It helped on noisy digits, and prepared a cut to 98 % well.
      Not when: Zeros must be exact (`prox_l1`), or the cut's level is known: `hypersparse_penalty` spares the large weights. In
        the forgetting study it was not shown to bring fine-tuning nearer to retraining.
      Badly with: Adam and RMSprop, which divide its sign by the gradient's size, so that a strength means something else for
        each weight; kernels before a normalisation, which shrink at no cost to the loss; `prox_l1` of the same leaves.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> float(rj.weights.l1({"kernel": jnp.array([[3.0, -4.0]]), "bias": jnp.array([9.0])}))
      7.0

    References:
      Tibshirani, Regression Shrinkage and Selection via the Lasso, 1996, Journal of the Royal Statistical Society B 58.
    """
    return _sum(jnp.sum(trees.absolute(x)) for x in _chosen("weights.l1", params, where))


def l2(params: PyTree, *, where: Where = None) -> Array:
    r"""Half the sum of squared weights.

    Formula:
      .. math:: \frac{1}{2} \sum_i w_i^2

      The gradient is ``w``, so with plain SGD a strength s is weight decay of the same s that is multiplied by the learning
      rate; with Adam it is not decoupled decay. Papers that write the sum of squares need twice their coefficient here.

    Args:
      params: a parameter tree.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if ``where`` is none of these or chooses a leaf that is no float.

    Cost:
      One pass over the weights each way; no forward pass.
      XLA at 8 times [512, 512]: at most 2.2 times the FLOPs and 1.7 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      For: noisy labels, few labels.
      When: The first thing to tune with SGD: one strength, no state. On noisy digits it was among the best weight techniques,
        but probabilities came out far too low there: follow it with `fit_temperature`.
      Not when: The optimiser is adaptive: use `decoupled_weight_decay`. Against loss of plasticity `l2_sp`, `spectral_penalty`
        and `orthonormality` held up clearly better in our study.
      Badly with: Weight decay in the optimiser, the same twice; kernels before a normalisation, where it only sets the
        effective learning rate (`renormalize`); `lawn`, which fixes the norms; coefficients of papers without the half, which
        have to be doubled here.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> float(rj.weights.l2({"kernel": jnp.array([[3.0, -4.0]]), "bias": jnp.array([9.0])}))
      12.5

    References:
      Krogh and Hertz, A Simple Weight Decay Can Improve Generalization, 1991, NeurIPS.
    """
    return _sum(_half_squares(x) for x in _chosen("weights.l2", params, where))


def elastic_net(params: PyTree, *, l1: Strength, l2: Strength, where: Where = None) -> Array:
    r"""A weighted sum of the l1 and l2 penalties.

    Formula:
      .. math:: \lambda_1 \sum_i |w_i| + \frac{\lambda_2}{2} \sum_i w_i^2

    Args:
      params: a parameter tree.
      l1: the weight of the absolute values, at least 0.
      l2: the weight of half the squares, at least 0.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if a weight is negative or not finite, or ``where`` is none of these.

    Cost:
      One pass over the weights each way; no forward pass.
      XLA at 8 times [512, 512]: at most 7.7 times the FLOPs and 3.9 times the bytes of a copy of its arguments, and 0.55 times
      its memory more.

    Use:
      For: sparsity budget, few labels.
      When: Inputs or features are correlated: the l2 part lets them share weight where `weights.l1` alone keeps one of them at
        random. Linear models and first layers above all.
      Not when: Exact zeros are needed: `prox_elastic_net`. Where no features are correlated, `weights.l1` or `weights.l2` alone
        has one strength less to tune.
      Badly with: Weight decay in the optimiser, a second l2 part; Adam, which rescales the sum of both gradients; kernels
        before a normalisation, whose size does not matter.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> float(rj.weights.elastic_net({"kernel": jnp.array([[3.0, -4.0]])}, l1=1.0, l2=2.0))
      32.0

    References:
      Zou and Hastie, Regularization and Variable Selection via the Elastic Net, 2005, Journal of the Royal Statistical Society
      B 67.
    """
    name = "weights.elastic_net"
    checks.number(name, "l1", l1, low=0.0)
    checks.number(name, "l2", l2, low=0.0)
    leaves = _chosen(name, params, where)
    return _sum(_times(l1, jnp.sum(trees.absolute(x))) + _times(l2, _half_squares(x)) for x in leaves)


def group_lasso(params: PyTree, *, groups: Any = "out", size_weighted: bool = False, where: Where = None) -> Array:
    r"""The sum of the norms of groups of weights: whole units, filters or layers are driven to zero together.

    Formula:
      .. math:: \sum_g c_g \, \|w_g\|_2, \quad c_g = 1, \text{ or } \sqrt{|g|} \text{ with } \texttt{size\_weighted}

      The gradient of a group that is zero is 0. `prox_group_lasso` reaches exact zeros.

    Args:
      params: a parameter tree.
      groups: ``"out"`` (default): one for each output unit or filter, the last axis, whose bias it keeps; ``"in"``: each
        input unit or channel, the last axis but one, from which nothing is left then; ``"kernel_position"``: each spatial
        position of a convolution (the whole of a dense kernel); ``"leaf"``: each leaf; or a list of groups across
        leaves, each a list of paths ``"encoder/conv/kernel"``, which may name subtrees and must be disjoint.
      size_weighted: whether a group counts times the root of its size; default False.
      where: which leaves: None (kernels, default; with groups written out, exactly those), "all", a predicate
        ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if ``groups`` is not of these forms, names no leaf or names one twice, or ``where`` is wrong.

    Cost:
      One pass over the weights each way; no forward pass.
      XLA at 8 times [512, 512]: at most 3.4 times the FLOPs and 1.7 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      For: sparsity budget, noisy labels, unlearning.
      When: Whole units, filters, inputs or adapter blocks should go. On noisy digits it gained more than `weights.l1`, in a
        narrow range of strengths. For forgetting with `LoRALinear` blocks, turn it on only after a warm-up: from the start it
        set all groups to 0 in our study.
      Not when: Exact zeros are wanted: `prox_group_lasso`. The number of survivors is fixed: then `structured_removal_penalty`
        prepared the cut far better on the digits.
      Badly with: Batch normalisation after the kernel, which restores any scale: choose its scales by ``where``. Biases outside
        the groups keep speaking for dead units. Adam evens out the pull on small and large groups.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> kernel = jnp.array([[3.0, 1.0], [4.0, 0.0]])
      >>> float(rj.weights.group_lasso({"kernel": kernel}))
      6.0
      >>> float(rj.weights.group_lasso({"a": {"kernel": 3 * kernel}, "b": {"bias": kernel[1]}}, groups=[["b"]]))
      4.0

    References:
      Yuan and Lin, Model Selection and Estimation in Regression with Grouped Variables, 2006, Journal of the Royal Statistical
      Society B 68. Wen et al., Learning Structured Sparsity in Deep Neural Networks, 2016, arXiv 1608.03665.
    """
    return _grouped("weights.group_lasso", params, None, 1.0, groups, size_weighted, where)


def sparse_group_lasso(
    params: PyTree, *, l1: Strength, group: Strength, groups: Any = "out", size_weighted: bool = False, where: Where = None
) -> Array:
    r"""A weighted sum of the l1 penalty and the group lasso: few groups, and few weights in them.

    Formula:
      .. math:: \lambda_1 \sum_i |w_i| + \lambda_g \sum_g c_g \, \|w_g\|_2

    Args:
      params: a parameter tree.
      l1: the weight of the absolute values, at least 0.
      group: the weight of the group norms, at least 0.
      groups: which weights form a group, as in `group_lasso`; default ``"out"``.
      size_weighted: whether a group counts times the root of its size; default False.
      where: which leaves, as in `group_lasso`; the l1 part counts the same leaves.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if a weight is negative or not finite, or ``groups`` or ``where`` is wrong.

    Cost:
      One pass over the weights each way; no forward pass.
      XLA at 8 times [512, 512]: at most 8.9 times the FLOPs and 3.9 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      For: sparsity budget.
      When: Few units should stay, and those with few inputs: feature selection in a first layer with ``groups='in'``, or
        compact hidden layers.
      Not when: Hardware gains from whole groups only: plain `group_lasso` has one strength less. For exact zeros take
        `prox_sparse_group_lasso`.
      Badly with: Adam, which rescales both parts; batch normalisation behind the groups; ``size_weighted=True`` with an l1 part
        tuned without, as the balance then depends on the layer's width.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> kernel = jnp.array([[3.0, 1.0], [4.0, 0.0]])
      >>> float(rj.weights.sparse_group_lasso({"kernel": kernel}, l1=0.5, group=1.0))
      10.0

    References:
      Simon et al., A Sparse-Group Lasso, 2013, Journal of Computational and Graphical Statistics 22. Scardapane et al., Group
      Sparse Regularization for Deep Neural Networks, 2016, arXiv 1607.00485.
    """
    name = "weights.sparse_group_lasso"
    checks.number(name, "l1", l1, low=0.0)
    checks.number(name, "group", group, low=0.0)
    return _grouped(name, params, l1, group, groups, size_weighted, where)


def _grouped(name: str, params: PyTree, l1: Any, group: Any, groups: Any, size_weighted: Any, where: Where) -> Array:
    checks.boolean(name, "size_weighted", size_weighted)
    leaves = jax.tree.leaves(params)
    terms = []
    for indices, axes in grouping.plan(name, params, groups, where):
        xs = [grouping.accumulated(name, leaves[i]) for i in indices]
        norms = grouping.norms(xs, axes)
        terms.append(_times(group, grouping.weight(xs, norms, size_weighted) * jnp.sum(norms)))
        if l1 is not None:
            terms += [_times(l1, jnp.sum(trees.absolute(x))) for x in xs]
    return _sum(terms)


def _chosen(name: str, params: PyTree, where: Where) -> list[Array]:
    return [grouping.accumulated(name, leaf) for leaf in trees.selected(name, params, where)]


def _half_squares(x: Array) -> Array:
    return 0.5 * jnp.sum(jnp.square(x))


def _times(strength: Any, x: Array) -> Array:
    # In the dtype of the sum: a float64 or weakly typed strength must not change it.
    return jnp.asarray(strength, x.dtype) * x


def _sum(terms: Any) -> Array:
    return sum(terms, jnp.zeros((), jnp.float32))
