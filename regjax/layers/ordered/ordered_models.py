"""What a training loop does with all ordered low-rank layers of a model.

The life of a model: `order_layers` factors its dense layers and convolutions; a step trains it truncated at a sampled layer
and rank (`truncate_ordered`) with `regjax.weights.low_rank_group_lasso`; `shrink_ordered` drops ranks once an epoch; and at
the end `fold_ordered` gives a smaller model of ordinary layers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from regjax.core import checks
from regjax.core.types import Array, Strength
from regjax.layers.ordered.ordered import check_rank
from regjax.layers.ordered.ordered_modules import OrderedConv, OrderedDense, OrderedLayer
from regjax.weights import shrink_ranks


def order_layers(model: nnx.Module, *, where: Callable[[str, nnx.Module], bool] | None = None) -> nnx.Module:
    r"""Factors the dense layers and convolutions of a model: what it computes stays the same.

    Formula:
      Every kernel becomes :math:`u v` by `svd_factorize`.

    Args:
      model: a Flax NNX model.
      where: ``(path, layer) -> bool``, with a path such as ``"blocks/0/conv1"``: which ``nnx.Linear`` and ``nnx.Conv`` layers
        to factor; None (default): all. Convolutions with groups, dilated inputs, a mask of weights, or padding other than
        ``"SAME"``, ``"VALID"`` and pairs stay as they are.

    Returns:
      A new model with `OrderedDense` and `OrderedConv` layers; it shares no variables with the old one. Their parameters
      are others: make the optimiser's state from the new model.

    Raises:
      ValueError: if ``model`` is no NNX module, or ``where`` is no function or chooses nothing.

    Cost:
      A singular value decomposition for each layer, once; XLA does not count it.
      XLA at 4 times [512, 512]: at most 18 times the FLOPs and 4.5 times the bytes of a copy of its arguments, and 0.69 times
      its memory more.

    Use:
      Part of: `OrderedDense`, `OrderedConv`.
      When: To turn an existing, trained or fresh model into ordered layers, whole or by ``where``. Make the optimiser's state
        afterwards.
      Not when: The last layer is small: leave the classifier dense, as its few ranks are all needed.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 3, rngs=rngs))
      >>> ordered = rj.layers.order_layers(model, where=lambda path, layer: path == "layers/2")
      >>> list(rj.layers.ordered_layers(ordered))
      ['layers/2']

    References:
      Horvath et al., Maestro: Uncovering Low-Rank Structures via Trainable Decomposition, 2024, arXiv 2308.14929.
    """
    name = "layers.order_layers"
    _check_model(name, model)
    if where is not None:
        checks.function(name, "where", where)
    chosen: list[str] = []

    def factor(path: tuple[Any, ...], node: Any) -> Any:
        make = _ordered_like(node)
        if make is None or (where is not None and not where(_joined(path), node)):
            return node
        chosen.append(_joined(path))
        layer = make()
        layer.bias = nnx.data(None) if node.bias is None else node.bias
        return layer

    ordered = nnx.recursive_map(factor, nnx.clone(model))
    if not chosen:
        checks.fail(name, "model" if where is None else "where", "a choice of at least one nnx.Linear or nnx.Conv", "none")
    return ordered


def ordered_layers(model: nnx.Module) -> dict[str, OrderedLayer]:
    """The ordered layers of a model by their paths: the order in which `truncate_ordered` counts them.

    Formula:
      None: it lists `OrderedDense` and `OrderedConv` layers, a shared one once.

    Args:
      model: a Flax NNX model.

    Returns:
      ``{"blocks/0": layer, ...}``. The layers are the model's own.

    Raises:
      ValueError: if ``model`` is no NNX module.

    Cost:
      None.

    Use:
      Part of: `OrderedDense`.
      When: To see which index of `truncate_ordered` and `sample_rank` is which layer.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> model = nnx.Sequential(rj.layers.OrderedDense(4, 8, rngs=nnx.Rngs(0)), nnx.relu)
      >>> {path: int(layer.alive.sum()) for path, layer in rj.layers.ordered_layers(model).items()}
      {'layers/0': 4}

    References:
      Horvath et al., Maestro: Uncovering Low-Rank Structures via Trainable Decomposition, 2024, arXiv 2308.14929.
    """
    _check_model("layers.ordered_layers", model)
    return {_joined(path): node for path, node in nnx.iter_graph(model) if isinstance(node, OrderedLayer)}


def truncate_ordered(model: nnx.Module, rank: Any, *, layer: Any = None) -> nnx.Module:
    r"""A view of a model with one ordered layer at a smaller rank, or each at its own; both may be traced.

    Formula:
      Layer l uses its first :math:`r_l` living ranks; with ``layer`` all but that one use all of theirs.

    Args:
      model: a Flax NNX model with L ordered layers. For one fraction in all of them there is
        ``nnx.view(model, fraction=0.5)``.
      rank: with ``layer`` how many ranks that layer uses, an integer or a traced one, as `sample_rank` draws it; without,
        integers ``[L]``, as `sample_ranks` draws them.
      layer: the index of the layer in `ordered_layers`, an integer or a traced one; None (default): ``rank`` is for all.

    Returns:
      A new model over the same variables: gradients and updates of the one are those of the other. Take the state after a
      pass, BatchNorm's say, from ``model``: that of the view holds the ranks too.

    Raises:
      ValueError: if ``model`` has no ordered layer, or ``rank`` or ``layer`` does not fit.

    Cost:
      None: one compiled step serves every layer and rank.
      XLA at [1024, 512]: at most 1.2 times the FLOPs and 1.2 times the bytes of the whole model, and 0 times its memory more.

    Use:
      Part of: `OrderedDense`.
      When: Inside the loss, with the draw of `sample_rank` or `sample_ranks`, or at test to try a rank in each layer.
      Badly with: Taking the model's state after the pass from the view: it holds the ranks, so that later passes stay
        truncated.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> model = nnx.Sequential(rj.layers.OrderedDense(4, 3, use_bias=False, rngs=nnx.Rngs(0)))
      >>> small = rj.layers.truncate_ordered(model, 0, layer=0)
      >>> bool((small(jnp.ones(4)) == 0).all())
      True

    References:
      Horvath et al., Maestro: Uncovering Low-Rank Structures via Trainable Decomposition, 2024, arXiv 2308.14929: one layer at
      a time.
    """
    name = "layers.truncate_ordered"
    layers = _layers(name, model)
    sizes = [found.v.shape[0] for found in layers]
    if layer is None:
        ranks = checks.integers(name, "rank", rank, shape=(len(layers),))
    else:
        rank = check_rank(name, rank, max(sizes))
        if isinstance(layer, jax.Array):
            layer = checks.integers(name, "layer", layer, shape=())
        else:
            layer = checks.integer(name, "layer", layer, low=0, high=len(layers) - 1)
        ranks = jnp.where(jnp.arange(len(layers)) == layer, jnp.asarray(rank, jnp.int32), jnp.asarray(sizes, jnp.int32))
    view = nnx.recursive_map(lambda path, node: node, model)
    for i, found in enumerate(ordered_layers(view).values()):
        found.set_view(rank=ranks[i])
    return view


def shrink_ordered(model: nnx.Module, *, threshold: Strength = 1e-5, hierarchical: bool = True) -> Array:
    r"""Marks the dead ranks of all ordered layers of a model, in place: progressive shrinking.

    Formula:
      That of `regjax.weights.shrink_ranks` for every layer.

    Args:
      model: a Flax NNX model with L ordered layers; inside ``jax.jit`` one that was merged there.
      threshold: the importance below which a rank is dead, at least 0, default 1e-5.
      hierarchical: as in the lasso of the training, default True.

    Returns:
      Integers ``[L]``: how many ranks live in each layer, what `sample_rank` draws from. The layers' ``alive`` is changed.

    Raises:
      ValueError: if ``model`` has no ordered layer, or ``threshold`` is negative or not finite.

    Cost:
      One pass over the factors; no shape changes, so that compiled steps go on. `fold_ordered` drops the ranks for good.
      XLA at 8 times [512, 512]: at most 2.3 times the FLOPs and 1.7 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      Part of: `OrderedDense`.
      When: After each epoch under `low_rank_group_lasso`, with the same ``hierarchical``. Give its result to `sample_rank`.
      Not when: Without the lasso: importances then fall to no threshold near 1e-5, and nothing dies.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> model = nnx.Sequential(rj.layers.OrderedDense(4, 3, rngs=nnx.Rngs(0)))
      >>> rj.layers.shrink_ordered(model).tolist()
      [3]

    References:
      Horvath et al., Maestro: Uncovering Low-Rank Structures via Trainable Decomposition, 2024, arXiv 2308.14929.
    """
    name = "layers.shrink_ordered"
    checks.number(name, "threshold", threshold, low=0.0)
    checks.boolean(name, "hierarchical", hierarchical)
    layers = _layers(name, model)
    for layer in layers:
        layer.alive.set_value(shrink_ranks(layer.u[...], layer.v[...], threshold=threshold, hierarchical=hierarchical))
    return jnp.stack([jnp.sum(layer.alive[...]).astype(jnp.int32) for layer in layers])


def fold_ordered(model: nnx.Module) -> nnx.Module:
    r"""A smaller model of ordinary layers that computes the same: every ordered layer without the ranks it does not use.

    Formula:
      That of `regjax.weights.fold_ranks`: two layers of :math:`(inputs + outputs) R` weights, or one dense layer where that
      is no smaller.

    Args:
      model: a Flax NNX model, or a view at some rank: ``fold_ordered(nnx.view(model, fraction=0.5))``.

    Returns:
      A new model, in which an ``nnx.Linear`` or ``nnx.Conv``, or an ``nnx.Sequential`` of two, stands for every ordered
      layer. It shares no variables with the old one.

    Raises:
      ValueError: if ``model`` has no ordered layer, or its ranks are traced.

    Cost:
      One matrix product for each layer at most, outside of training.
      XLA at 8 times [512, 512]: at most 0 times the FLOPs and 0.69 times the bytes of a copy of its arguments, and 0.018 times
      its memory more.

    Use:
      Part of: `OrderedDense`.
      When: At the end, for speed: until then every rank is computed and masked. A model that trains on after it can grow no
        rank back.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> model = nnx.Sequential(rj.layers.OrderedDense(8, 8, rngs=nnx.Rngs(0)), nnx.relu)
      >>> small = rj.layers.fold_ordered(nnx.view(model, rank=2))
      >>> [layer.kernel.shape for layer in small.layers[0].layers]
      [(8, 2), (2, 8)]

    References:
      Horvath et al., Maestro: Uncovering Low-Rank Structures via Trainable Decomposition, 2024, arXiv 2308.14929.
    """
    name = "layers.fold_ordered"
    for layer in _layers(name, model):
        keep = layer.kept()
        checks.concrete(name, "model", keep, "since its ranks decide shapes")
    return nnx.recursive_map(lambda path, node: node.fold() if isinstance(node, OrderedLayer) else node, nnx.clone(model))


def _ordered_like(node: Any) -> Callable[[], OrderedLayer] | None:
    """Makes the ordered layer of a dense one or a convolution, but for its bias; None for what has none."""
    if type(node) is nnx.Linear:
        return lambda: OrderedDense(node.in_features, node.out_features, **_factored(node))
    if type(node) is not nnx.Conv or node.feature_group_count != 1 or node.mask is not None:
        return None
    spatial = len(node.kernel_size)
    steps = lambda value: (value or 1,) * spatial if isinstance(value, int | None) else tuple(value)
    padding: Any = node.padding
    if isinstance(padding, int):
        padding = ((padding, padding),) * spatial
    elif not isinstance(padding, str):
        padding = tuple((pair, pair) if isinstance(pair, int) else tuple(pair) for pair in padding)
    known = isinstance(padding, tuple) or padding in ("SAME", "VALID")
    if spatial > 3 or not known or steps(node.input_dilation) != (1,) * spatial:
        return None
    return lambda: OrderedConv(
        node.in_features,
        node.out_features,
        node.kernel_size,
        strides=steps(node.strides),
        padding=padding,
        dilation=steps(node.kernel_dilation),
        **_factored(node),
    )


def _factored(node: Any) -> dict[str, Any]:
    kernel = node.kernel[...]
    given = {"kernel_init": lambda key, shape, dtype: kernel, "rngs": nnx.Rngs(0)}
    return {"use_bias": False, "dtype": node.dtype, "param_dtype": kernel.dtype, **given}


def _joined(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))


def _check_model(name: str, model: Any) -> None:
    if not isinstance(model, nnx.Module):
        checks.fail(name, "model", "a Flax NNX model", model)


def _layers(name: str, model: Any) -> list[OrderedLayer]:
    _check_model(name, model)
    layers = list(ordered_layers(model).values())
    if not layers:
        checks.fail(name, "model", "a Flax NNX model with at least one ordered layer", type(model).__name__)
    return layers
