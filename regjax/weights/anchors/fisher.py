"""Consolidation by the diagonal of the Fisher information: elastic weight consolidation."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, sharding, trees
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.weights.anchors import _memory


class EWCState(NamedTuple):
    """The memory of `ewc`: two trees as the parameters, with None for leaves that are not consolidated.

    Attributes:
      minimum: the parameters after the last task, at first 0.
      fisher: the prior's precision and the diagonal Fisher information of all tasks so far.
    """

    minimum: PyTree
    fisher: PyTree


def diagonal_fisher(
    params: PyTree,
    logits_fn: Callable[[PyTree, Any], Array],
    batches: Any,
    *,
    fisher: Literal["true", "empirical"] = "true",
    reduction: Literal["mean", "sum"] = "mean",
    where: Where = "all",
) -> PyTree:
    r"""The diagonal of a classifier's Fisher information: how much each parameter matters for what the model predicts.

    Formula:
      .. math:: F_i = \frac{1}{N} \sum_n \sum_k p_{nk} \left( \frac{\partial \log p_{nk}}{\partial \theta_i} \right)^2

      for the probabilities p of the model, exact in the classes; or, ``fisher="empirical"``, with the labels in their place:
      :math:`\frac{1}{N} \sum_n (\partial \log p_{n y_n} / \partial \theta_i)^2`, each example's gradient squared before
      the mean.

    Args:
      params: a parameter tree, :math:`\theta`; evaluated in float32 or better.
      logits_fn: ``logits_fn(params, inputs) -> logits [B, K]``. It is called with one example at a time, under ``vmap``: its
        batch normalisation must use running statistics.
      batches: a pair ``(inputs, labels)`` of arrays ``[n_batches, B, ...]``, or trees of them, which is scanned; or a list or
        another iterable of pairs with axes ``[B, ...]``, read once, on the host. Labels are class ids or probabilities;
        ``"true"`` does not read them: they may be None.
      fisher: ``"true"`` (default) or ``"empirical"``.
      reduction: ``"mean"`` (default) over the N examples, or ``"sum"``, the scale of a likelihood of all data.
      where: which leaves: "all" (default), None or "kernels", a predicate ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      A tree as ``params`` in float32 or better, at least 0, with None for leaves that are not chosen, constant: for `ewc_update`,
      which calls this, and for `fisher_interpolate`.

    Raises:
      ValueError: if ``logits_fn`` is no function or returns no logits, ``batches`` is not of this form, or an option is unknown.

    Cost:
      One forward pass, and a backward pass for each class (``"empirical"``: one), of all data, with the gradients of B examples
      in memory: ``2 B P`` numbers. Sharded parameters are gathered. XLA counts the bodies of the loops once.
      XLA at [256, 256]: at most 2 times the FLOPs and 21 times the bytes of the gradient of a batch, and 13 times its memory
      more.

    Use:
      Part of: `ewc`, `fisher_interpolate`.
      When: Call it yourself for `fisher_interpolate` or another measure of importance; `ewc_update` calls it for you.
        ``empirical`` is cheaper for many classes, but vanishes once every example is fitted.
      Badly with: Batch normalisation by batch statistics and dropout: it runs one example at a time, so the model must be in
        evaluation mode.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> logits_fn = lambda w, x: x @ w
      >>> data = jnp.ones((1, 1, 1)), None  # one batch of one example
      >>> rj.weights.diagonal_fisher(jnp.zeros((1, 2)), logits_fn, data).tolist()
      [[0.25, 0.25]]

    References:
      Kirkpatrick et al., Overcoming Catastrophic Forgetting in Neural Networks, 2017, arXiv 1612.00796. Kunstner et al.,
      Limitations of the Empirical Fisher Approximation for Natural Gradient Descent, 2019, arXiv 1905.12558, on the two kinds.
    """
    name = "weights.diagonal_fisher"
    chosen = jax.tree.leaves(trees.select(name, params, where))
    return _fisher(name, params, logits_fn, batches, fisher, reduction, chosen)


def ewc_init(params: PyTree, *, precision: Strength = 1.0, where: Where = "all") -> EWCState:
    r"""The memory of `ewc` before the first task: a normal prior around zero.

    Formula:
      .. math:: m = 0, \quad F = \pi

      so that the penalty of the first task is :math:`\frac{\pi}{2} \|\theta\|^2`.

    Args:
      params: a parameter tree, of which the shapes are read.
      precision: :math:`\pi`, at least 0, default 1, which fits the summed Fisher information of `ewc_update`; beside its mean 1
        is as much as all data of a task say, and about 1 over their number fits. 0 for a model that was trained without.
      where: which leaves: "all" (default), None or "kernels", a predicate ``(path, leaf) -> bool``, or a tree of booleans. The
        memory keeps the choice.

    Returns:
      An `EWCState` in float32 or better.

    Raises:
      ValueError: if ``precision`` is negative or no number, or the choice of leaves is none.

    Cost:
      Two copies of the parameters.
      XLA at 16 times [512, 512]: at most 0 times the FLOPs and 1.1 times the bytes of a copy of its results, and 0 times its
      memory more.

    Use:
      Part of: `ewc`.
      When: Once before the first task. Set ``precision=0`` for a model that was trained without the prior, and about one over
        the examples of a task beside the mean Fisher information.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.weights.ewc_init({"kernel": jnp.ones((1, 2))}, precision=3.0).fisher["kernel"].tolist()
      [[3.0, 3.0]]

    References:
      See `ewc`.
    """
    name = "weights.ewc_init"
    checks.number(name, "precision", precision, low=0.0)
    full = lambda value: _memory.memory(name, params, where, lambda x: jnp.zeros_like(x) + jnp.asarray(value, x.dtype))
    return EWCState(full(0.0), full(precision))


def ewc_update(
    state: EWCState,
    params: PyTree,
    logits_fn: Callable[[PyTree, Any], Array],
    batches: Any,
    *,
    fisher: Literal["true", "empirical"] = "true",
    reduction: Literal["mean", "sum"] = "mean",
) -> EWCState:
    r"""Adds a finished task to the memory of `ewc`: the diagonal Fisher information of its data.

    Formula:
      .. math:: m \leftarrow \theta, \quad F \leftarrow F + F_{task}(\theta)

      with `diagonal_fisher` of the task.

    Args:
      state: the `EWCState` so far.
      params: the parameters at the end of the task, :math:`\theta`.
      logits_fn: ``logits_fn(params, inputs) -> logits [B, K]``.
      batches: a pair ``(inputs, labels)`` of stacked arrays ``[n_batches, B, ...]``, or an iterable of pairs; as in
        `diagonal_fisher`.
      fisher: ``"true"`` (default) or ``"empirical"``.
      reduction: ``"mean"`` (default) over the examples, or ``"sum"``. The sum is on the scale of `quadratic_consolidation`, so
        that the same strength means the same; with the mean it has to be larger by the number of examples in a task.

    Returns:
      The `EWCState` of all tasks.

    Raises:
      ValueError: if ``state`` is not of these parameters, or for what `diagonal_fisher` refuses.

    Cost:
      That of `diagonal_fisher`, once for each task. XLA counts the bodies of the loops once.
      XLA at [256, 256]: at most 2 times the FLOPs and 22 times the bytes of the gradient of a batch, and 13 times its memory
      more.

    Use:
      Part of: `ewc`.
      When: Once at the end of each task, on that task's data, with the parameters at its minimum. Choose ``reduction`` before
        tuning the strength: the two differ by the number of examples.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> state, data = rj.weights.ewc_init(jnp.zeros((1, 2))), (jnp.ones((1, 1, 1)), None)
      >>> rj.weights.ewc_update(state, jnp.zeros((1, 2)), lambda w, x: x @ w, data).fisher.tolist()
      [[1.25, 1.25]]

    References:
      See `ewc`. The sum over tasks around the last minimum alone is that of Huszar, Note on the Quadratic Penalties in
      Elastic Weight Consolidation, 2017, arXiv 1712.03847.
    """
    name = "weights.ewc_update"
    minimum, before = _places(name, state, params)
    chosen = [m is not None for m in minimum]
    structure: Any = jax.tree.structure(params)
    task = structure.flatten_up_to(_fisher(name, params, logits_fn, batches, fisher, reduction, chosen))
    after = [f if f is None else f + new.astype(f.dtype) for f, new in zip(before, task, strict=True)]
    # A copy: the caller may donate the parameters.
    here = [m if m is None else jnp.array(w, m.dtype) for m, w in zip(minimum, jax.tree.leaves(params), strict=True)]
    return jax.lax.stop_gradient(EWCState(jax.tree.unflatten(structure, here), jax.tree.unflatten(structure, after)))


def ewc(params: PyTree, state: EWCState, *, weight: Strength = 1.0) -> Array:
    r"""Keeps what earlier tasks have taught: parameters that they depend on are held near their old values (EWC).

    Formula:
      .. math:: \frac{w}{2} \sum_i F_i (\theta_i - m_i)^2

      with the memory m, F of `ewc_init` and `ewc_update`, constant.

    Args:
      params: a parameter tree, :math:`\theta`.
      state: the `EWCState`. ``partial(ewc, state=state)`` is a penalty ``f(params) -> scalar``: build it, and the
        ``optax.chain`` with `regjax.gradients.add_penalty` of it, inside the compiled step from a state that is an argument of
        the step, and nothing compiles again when a task ends.
      weight: w, at least 0, default 1; 0 is fine-tuning. The scale is that of the Fisher information: see
        ``reduction`` of `ewc_update`.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if ``state`` is not of these parameters, or ``weight`` is negative or no number.

    Cost:
      One pass over the parameters and the memory each way.
      XLA at 24 times [512, 512]: at most 2.6 times the FLOPs and 1.5 times the bytes of a copy of its arguments, and 0.092
      times its memory more.

    Use:
      For: forgetting.
      When: Tasks come one after another, old data may be read once at a task's end but not kept, and the model is too large for
        the Hessian of `quadratic_consolidation`. Use the summed Fisher information, or a precision near one over the examples
        of a task.
      Not when: A hidden layer must tell classes of several tasks apart without task labels: our MLP head kept far less than
        under `quadratic_consolidation`. With the mean Fisher information and precision 1 it did hardly more than `l2_sp`.
      Badly with: Weight decay to 0, which pulls held weights away from their old values; a strength tuned for one ``reduction``
        and used with the other; batch normalisation, whose statistics follow the new task unpenalised.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> state = rj.weights.EWCState(jnp.array([1.0, 0.0]), jnp.array([2.0, 4.0]))
      >>> float(rj.weights.ewc(jnp.array([2.0, 1.0]), state))
      3.0

    References:
      Kirkpatrick et al., Overcoming Catastrophic Forgetting in Neural Networks, 2017, arXiv 1612.00796; with one quadratic for
      all past tasks, as in the code of Zhu and Kuruoglu, On Sequential Loss Approximation for Continual Learning, 2024, arXiv
      2405.16498.
    """
    name = "weights.ewc"
    checks.number(name, "weight", weight, low=0.0)
    return _memory.diagonal(params, *_places(name, state, params), weight)


def _places(name: str, state: Any, params: PyTree) -> tuple[list[Any], list[Any]]:
    """The leaves of the memory for those of the parameters."""
    _memory.check_state(name, state, EWCState, "ewc_init()")
    found = [_memory.along(name, f"state.{field}", getattr(state, field), params) for field in EWCState._fields]
    return _memory.both(*found)


def _fisher(name: str, params: PyTree, logits_fn: Any, batches: Any, fisher: str, reduction: str, chosen: list[bool]) -> PyTree:
    checks.function(name, "logits_fn", logits_fn)
    checks.choice(name, "fisher", fisher, ("true", "empirical"))
    checks.choice(name, "reduction", reduction, ("mean", "sum"))
    leaves, structure = jax.tree.flatten(params)
    flags = [use and trees.is_float(leaf) for use, leaf in zip(chosen, leaves, strict=True)]
    wide = [trees.widen(jax.lax.stop_gradient(jnp.asarray(x)) if trees.is_float(x) else x) for x in leaves]
    # The examples keep the mesh axis that may shard them; the gradients of each are of all parameters.
    own = [sharding.replicate(x) for x, use in zip(wide, flags, strict=True) if use]

    def log_probabilities(own: list[Array], x: Any) -> Array:
        new = iter(own)
        full = [next(new) if use else leaf for leaf, use in zip(wide, flags, strict=True)]
        logits = logits_fn(jax.tree.unflatten(structure, full), jax.tree.map(lambda a: a[None], x))
        if not (isinstance(logits, jax.Array) and logits.ndim == 2 and len(logits) == 1 and trees.is_float(logits)):
            checks.fail(name, "logits_fn", "a function that returns floating-point logits [B, K]", logits)
        return jax.nn.log_softmax(logits[0].astype(trees.accumulator(logits)))

    def true(own: list[Array], x: Any, _: Any) -> list[Array]:
        log_p, pull = jax.vjp(lambda own: log_probabilities(own, x), own)

        def add(total: list[Array], of_class: Any) -> Any:
            probability, row = of_class
            return [t + probability.astype(g.dtype) * g * g for t, g in zip(total, pull(row)[0], strict=True)], None

        # One class after the other: the gradients of all of them at once would be K times the memory.
        start = [jnp.zeros_like(w) for w in own]
        return jax.lax.scan(add, start, (jnp.exp(log_p), jnp.eye(log_p.size, dtype=log_p.dtype)))[0]

    def empirical(own: list[Array], x: Any, y: Any) -> list[Array]:
        def likelihood(own: list[Array]) -> Array:
            log_p = log_probabilities(own, x)
            given = classes.class_inputs(name, log_p, y)
            return classes.expected_under(log_p, given.labels, given.is_ids)

        return [g * g for g in jax.grad(likelihood)(own)]

    def add(own: list[Array], total: Any, batch: Any) -> Any:
        x, y = _pair(name, batch, fisher)
        each = jax.vmap(true if fisher == "true" else empirical, in_axes=(None, 0, 0))(own, x, None if fisher == "true" else y)
        seen, sums = total
        return seen + len(jax.tree.leaves(x)[0]), [t + jnp.sum(g, axis=0) for t, g in zip(sums, each, strict=True)]

    if own:
        start = jnp.zeros((), jnp.int32), [jnp.zeros_like(w) for w in own]
        count, sums = _memory.over_batches(name, add, own, start, batches)
        sums = [s if reduction == "sum" else s / count.astype(s.dtype) for s in sums]
    found = iter(sums if own else [])
    placed = [sharding.placed_like(next(found), jnp.asarray(x)) if use else None for x, use in zip(leaves, flags, strict=True)]
    return jax.lax.stop_gradient(jax.tree.unflatten(structure, placed))


def _pair(name: str, batch: Any, fisher: str) -> tuple[Any, Any]:
    """The inputs and labels of a batch."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        checks.fail(name, "batches", "pairs (inputs, labels)", batch)
    x, y = batch
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves((x, y) if fisher == "empirical" else x)}
    if len(lengths) != 1 or () in lengths or (0,) in lengths or (fisher == "empirical" and y is None):
        expected = "pairs (inputs, labels) that share the number of examples, at least 1 (no labels need fisher='true')"
        checks.fail(name, "batches", expected, [jnp.shape(leaf) for leaf in jax.tree.leaves((x, y))])
    return x, y
