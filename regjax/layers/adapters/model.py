"""Whole models with adapters: put on, listed, grouped for a penalty, and merged into plain layers.

The life of a model: `adapt` puts adapters on its layers and freezes them; a step trains the variables of type `AdapterParam`;
and `merge` gives a model of the layers that it had, with the kernels that were trained.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from regjax.core import checks, trees
from regjax.core.types import PyTree
from regjax.layers.adapters.base import ADAPTABLE, AdaptedLayer, is_adaptable

# The trained leaves of each kind of adapter, by their names.
_KINDS = ({"a", "b"}, {"u", "s", "vt"}, {"eps"})


def adapt(
    model: nnx.Module,
    make_adapter: Callable[..., nnx.Module],
    *,
    where: Callable[[str, nnx.Module], bool] | None = None,
    rngs: nnx.Rngs | None = None,
) -> nnx.Module:
    r"""Puts an adapter on the layers of a model and freezes them: what it computes stays the same.

    Formula:
      Every chosen layer becomes ``make_adapter(layer, rngs=rngs)``; a layer that stands in several places once.

    Args:
      model: a Flax NNX model of any structure.
      make_adapter: `LoRALinear`, `LoRAGroup`, `SORSALinear` or `SVDLinear`, a ``functools.partial`` of one with its options,
        or a function ``(layer, *, rngs)`` that chooses among them.
      where: ``(path, layer) -> bool``, with a path such as ``"blocks/0/attention/query"``: which of the ``nnx.Linear``,
        ``nnx.LinearGeneral`` (the projections of ``nnx.MultiHeadAttention``) and ``nnx.Conv`` layers to adapt; None (default):
        all but the convolutions. Convolutions with groups or a mask stay as they are, and so do adapted layers. Layers
        stacked for a scan are adapted inside ``nnx.vmap``.
      rngs: ``nnx.Rngs`` for the initial adapters, with the stream "dropout" where they drop; `SORSALinear` and `SVDLinear`
        need none.

    Returns:
      A new model; it shares no variables with the old one, which is not changed. The adapters' variables are of
      `AdapterParam`, by which ``nnx.grad(wrt=...)`` and ``nnx.Optimizer(wrt=...)`` train them alone; adapted kernels and
      biases keep their paths and are no ``nnx.Param``; all else is as it was. Make the optimiser's state from the new model.

    Raises:
      ValueError: if ``model`` is no NNX module, ``make_adapter`` is no function or makes something else, ``where`` is no
        function or chooses nothing, or a chosen kernel is shared with another layer.

    Cost:
      That of making the adapters, once.
      XLA at 4 times [512, 512]: at most 0.24 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      Part of: `LoRALinear`, `LoRAGroup`, `SORSALinear`, `SVDLinear`.
      When: To put adapters on a whole model, different ones by ``where`` or a function. Heads that shall be trained in full are
        left out by ``where`` and added to ``wrt=``.
      Badly with: An optimiser state from the old model. ``wrt=nnx.Param``, which trains what was not adapted, normalisation
        scales and heads, along with the adapters.

    Example:
      >>> import functools, jax, jax.numpy as jnp, optax, regjax as rj
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 3, rngs=nnx.Rngs(1)))
      >>> lora = functools.partial(rj.layers.LoRALinear, rank=2)
      >>> model = rj.layers.adapt(model, lora, where=lambda path, layer: path == "layers/0", rngs=nnx.Rngs(2))
      >>> optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=rj.layers.AdapterParam)
      >>> loss_fn = lambda model, x: jnp.mean(model(x) ** 2)
      >>> grads = nnx.grad(loss_fn, argnums=nnx.DiffState(0, rj.layers.AdapterParam))(model, jnp.ones((2, 4)))
      >>> _ = optimizer.update(model, grads)
      >>> plain = rj.layers.merge(model)
      >>> type(plain.layers[0]).__name__
      'Linear'

    References:
      Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv 2106.09685; Houlsby et al.,
      Parameter-Efficient Transfer Learning for NLP, 2019, arXiv 1902.00751.
    """
    name = "layers.adapt"
    _check_model(name, model)
    checks.function(name, "make_adapter", make_adapter)
    if where is not None:
        checks.function(name, "where", where)
    if rngs is not None and not isinstance(rngs, nnx.Rngs):
        checks.fail(name, "rngs", "nnx.Rngs or None", rngs)
    model = nnx.clone(model)
    owners = _owners(model)
    chosen: list[str] = []

    def put(path: tuple[Any, ...], node: Any) -> Any:
        if not is_adaptable(node):
            return node
        at = "/".join(map(str, path))
        if not (type(node) is not nnx.Conv if where is None else where(at, node)):
            return node
        if owners[id(node.kernel)] > 1:
            checks.fail(name, "where", "a choice of layers with kernels of their own", f"{at}, whose kernel is shared")
        chosen.append(at)
        adapted = make_adapter(node, rngs=rngs)
        if not isinstance(adapted, AdaptedLayer):
            expected = "a function that makes a LoRALinear, LoRAGroup, SORSALinear or SVDLinear"
            checks.fail(name, "make_adapter", expected, type(adapted).__name__)
        return adapted

    adapted = nnx.recursive_map(put, model)
    if not chosen:
        checks.fail(name, "model" if where is None else "where", f"a choice of at least one layer: {ADAPTABLE}", "none")
    return adapted


def merge(model: nnx.Module) -> nnx.Module:
    r"""Turns the adapted layers of a model into plain ones that compute the same.

    Formula:
      .. math:: W \leftarrow W + \Delta

      with :math:`\Delta = scale \, a b`, :math:`\sum_i a_i b_i`, :math:`scale \, u \, diag(s) \, v^T` or
      :math:`U \, diag(\epsilon) \, V^T`.

    Args:
      model: a Flax NNX model with adapted layers.

    Returns:
      A new model in which every adapted layer is again of the class and the settings that it had, with ``nnx.Param`` as they
      were; it shares no variables with the old one. Where an adapter adds nothing, as at the start, the kernel is bit for
      bit the frozen one. Dropout on the adapters' input is gone.

    Raises:
      ValueError: if ``model`` has no adapted layer.

    Cost:
      One product of ``in * rank * out`` multiplications for each layer, outside of training.
      XLA at 4 times [512, 512]: at most 19 times the FLOPs and 2.2 times the bytes of a copy of its arguments, and 0.27 times
      its memory more.

    Use:
      Part of: `adapt`.
      When: After fine-tuning, for a model at its old cost, or before the next task gets adapters of its own.
      Not when: Kernels are in bfloat16 and the update is small: it is rounded away in the sum. Keep the adapters, or cast
        first.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu)
      >>> plain = rj.layers.merge(rj.layers.adapt(model, rj.layers.SVDLinear))
      >>> bool((plain.layers[0].kernel == model.layers[0].kernel).all())
      True

    References:
      Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv 2106.09685.
    """
    _adapted("layers.merge", model)
    return nnx.recursive_map(lambda path, node: node.merge() if isinstance(node, AdaptedLayer) else node, nnx.clone(model))


def adapters_of(model: nnx.Module) -> dict[str, AdaptedLayer]:
    """The adapted layers of a model by their paths, a shared one once.

    Formula:
      None: it lists them.

    Args:
      model: a Flax NNX model; inside a loss one that was merged from its state there.

    Returns:
      ``{"blocks/0/query": layer, ...}``. The layers are the model's own, and the dictionary is a tree of adapters, which
      `regjax.weights.sorsa_orthonormality` and `regjax.weights.orthogonal_group_penalty` take, as they take the model.

    Raises:
      ValueError: if ``model`` is no NNX module or has no adapted layer.

    Cost:
      None.

    Use:
      Part of: `sorsa_orthonormality`, `orthogonal_group_penalty`.
      When: To look at single adapters, or to give a penalty some of them only.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.relu)
      >>> model = rj.layers.adapt(model, rj.layers.SVDLinear)
      >>> {path: layer.eps.shape for path, layer in rj.layers.adapters_of(model).items()}
      {'layers/0': (3,)}

    References:
      Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv 2106.09685.
    """
    return _adapted("layers.adapters_of", model)


def adapter_groups(params: PyTree, by: int | str) -> list[list[tuple[str, ...]]]:
    r"""The adapters of each block of a model as groups of weights, for `regjax.weights.group_lasso`.

    Formula:
      One group for each beginning of ``by`` names of a path, or for each text that the pattern finds in the paths: all
      trained arrays of the adapters under it, ``a`` and ``b`` of both layers of a feed-forward block say.

    Args:
      params: the parameters as the penalty will get them: a state of the adapters or a whole one, a dictionary, or a model.
      by: how many names of a path make a block, 2 for ``("blocks", "0", ...)``; or a regular expression that is searched in
        the path ``"blocks/0/mlp/up/a"``, such as ``r"blocks/\d+"``: adapters in which it is not found are in no group.

    Returns:
      A list of groups, each a list of paths: the argument ``groups`` of `regjax.weights.group_lasso` and
      `regjax.weights.prox_group_lasso`.

    Raises:
      ValueError: if ``by`` is no positive integer or regular expression, or leaves no group.

    Cost:
      None; the groups are made outside of a step or when it is traced.

    Use:
      Part of: `group_lasso`, `prox_group_lasso`.
      When: For group-sparse forgetting: whole blocks without change. In the forgetting study it needed a warm-up without the
        lasso, and stood near a strength at which every group collapsed.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> pair = {"a": jnp.array([[3.0]]), "b": jnp.array([[4.0]])}
      >>> params = {"blocks": [{"up": pair, "down": pair}, {"up": pair}], "head": {"kernel": jnp.ones((1, 1))}}
      >>> groups = rj.layers.adapter_groups(params, 2)
      >>> groups[1]
      [('blocks', '1', 'up', 'a'), ('blocks', '1', 'up', 'b')]
      >>> round(float(rj.weights.group_lasso(params, groups=groups)), 4)
      12.0711

    References:
      Zhao et al., Continual Forgetting for Pre-trained Vision Models, 2024, arXiv 2403.11530: the four matrices of the
      feed-forward layers of one transformer block are a group.
    """
    name = "layers.adapter_groups"
    if isinstance(by, str):
        try:
            pattern = re.compile(by)
        except re.error:
            checks.fail(name, "by", "a number of names, or a regular expression", by)
    else:
        checks.integer(name, "by", by, low=1)
    flat = [trees.path_names(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    names: dict[tuple[str, ...], set[str]] = {}
    for path in flat:
        names.setdefault(path[:-1], set()).add(path[-1] if path else "")
    groups: dict[Any, list[tuple[str, ...]]] = {}
    for path in flat:
        beside = names[path[:-1]]
        # The frozen vectors beside eps are not trained.
        trained = {"eps"} if "eps" in beside else set().union(*(kind for kind in _KINDS if kind <= beside))
        if path and path[-1] in trained:
            found = pattern.search("/".join(path)) if isinstance(by, str) else None
            block = path[:by] if not isinstance(by, str) else found and found.group()
            if block is not None:
                groups.setdefault(block, []).append(path)
    if flat and not groups:
        checks.fail(name, "by", "such that some adapters of the parameters are in a group", by)
    return list(groups.values())


def _adapted(name: str, model: Any) -> dict[str, AdaptedLayer]:
    _check_model(name, model)
    found = {"/".join(map(str, path)): node for path, node in nnx.iter_graph(model) if isinstance(node, AdaptedLayer)}
    if not found:
        checks.fail(name, "model", "a Flax NNX model with at least one adapted layer", type(model).__name__)
    return found


def _check_model(name: str, model: Any) -> None:
    if not isinstance(model, nnx.Module):
        checks.fail(name, "model", "a Flax NNX model", model)


def _owners(model: nnx.Module) -> dict[int, int]:
    """In how many modules each variable stands."""
    count: dict[int, int] = {}
    for _, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Module):
            for value in vars(node).values():
                if isinstance(value, nnx.Variable):
                    count[id(value)] = count.get(id(value), 0) + 1
    return count
