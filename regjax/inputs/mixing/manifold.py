"""Mixup of hidden features: manifold mixup of a list of stages, or of the named layers of a Flax NNX model."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from regjax.core import checks
from regjax.core.partners import mix_partner
from regjax.core.types import Array, Key, PyTree, Strength
from regjax.inputs.mixing.pairs import check_blocks, check_soft_labels, sample_lam, sample_partner


def manifold_mixup(
    key: Key,
    stages: Sequence[Callable[[Any], Any]],
    x: Any,
    labels: Any,
    *,
    alpha: Strength = 2.0,
    layers: Sequence[int] = (0, 1, 2),
    within_shard: int | None = None,
) -> tuple[PyTree, Array]:
    r"""Runs a network's stages with the input of one of them, drawn at random, mixed between examples.

    Formula:
      .. math::
         k \sim U(layers), \quad \lambda \sim Beta(\alpha, \alpha), \quad
         h_k \leftarrow \lambda h_k + (1 - \lambda) h_k[\pi], \quad \tilde y = \lambda y + (1 - \lambda) y[\pi]

      One layer, one lam and one permutation for the batch. The loss is the cross-entropy of the mixed labels.

    Args:
      key: a random key; where the batch is sharded it must be the same on every device.
      stages: functions, each from the output of the one before, ``[B, ...]``; the first from ``x``.
      x: float ``[B, ...]``.
      labels: float ``[B, ...]``: one-hot or probability labels.
      alpha: the Beta parameter, at least 0, default 2. 0 changes nothing.
      layers: the candidates, positions in ``stages``: k mixes the input of ``stages[k]``, 0 the image. Default (0, 1, 2), as
        the authors with a ResNet of four stages. ``(0,)`` is mixup.
      within_shard: None pairs over the whole batch; a number G that divides B pairs inside each of G contiguous blocks, so
        that a batch sharded over G devices mixes without communication.

    Returns:
      ``(outputs, labels)``: what the last stage gives, and the mixed labels in their dtype.

    Raises:
      ValueError: if labels are class ids (mixed labels are probabilities), a shape does not fit, ``alpha`` is out of range,
        or a layer is no position in ``stages`` or named twice.

    Cost:
      One gather of the features at each candidate layer, as each mixes with a weight that is 1 at all but one: no other
      pass, and one compiled program for all choices.
      XLA at 2 times [512, 512]: at most 1.2 times the FLOPs and 1.6 times the bytes of the plain gradient, and 0.16 times its
      memory more.

    Use:
      For: few labels, noisy labels.
      When: `mixup` helps and the network can be written as a chain of stages: mixing hidden features smooths the decision
        between classes where pixels do not average well. It stood a little above `mixup` on noisy digits, at large alpha.
      Not when: Stages carry no batch on axis 0, or the layers that you would mix are frozen. A model that underfits with
        `mixup` underfits here too.
      Badly with: BatchNorm after a mixed layer, whose running averages see mixtures that no test image makes. `mixup` on the
        inputs as well, which mixes labels twice. Memories by position such as `elr`.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> stages = [lambda h: 2 * h, jnp.tanh, lambda h: h.sum(-1)]
      >>> x, labels = jnp.ones((4, 3)), jax.nn.one_hot(jnp.arange(4), 10)
      >>> outputs, labels = rj.inputs.manifold_mixup(jax.random.key(0), stages, x, labels)
      >>> outputs.shape, round(float(labels.sum()), 4)
      ((4,), 4.0)

    References:
      Verma et al., Manifold Mixup: Better Representations by Interpolating Hidden States, 2018, arXiv 1806.05236. The
      authors' supervised code minimises a binary cross-entropy of the softmax, `losses.softmax_binary_cross_entropy`, also
      for its baseline; the paper writes cross-entropy.
    """
    name = "inputs.manifold_mixup"
    if not (isinstance(stages, Sequence) and stages and all(callable(stage) for stage in stages)):
        checks.fail(name, "stages", "a list of functions", stages)
    x = checks.floating(name, "x", x, min_ndim=1)
    labels = check_soft_labels(name, labels, x.shape[0])
    layers = _check_layers(name, layers)
    for layer in layers:
        checks.integer(name, "layers", layer, low=0, high=len(stages) - 1)
    lams, lam, partner = _weights(name, key, x.shape[0], alpha, len(layers), within_shard)
    h: Any = x
    for k, stage in enumerate(stages):
        if k in layers:
            h = _mix_tree(name, "stages", h, lams[layers.index(k)], partner)
        h = stage(h)
    return h, mix_partner(labels, lam, partner)


def manifold_mixup_model(
    key: Key,
    model: nnx.Module,
    x: Any,
    labels: Any,
    *,
    layers: Sequence[str],
    alpha: Strength = 2.0,
    within_shard: int | None = None,
    call: Callable[[Any, Array], Any] | None = None,
) -> tuple[PyTree, Array]:
    r"""Manifold mixup of the named layers of any Flax NNX model, without a change to its code.

    Formula:
      .. math::
         k \sim U(layers), \quad \lambda \sim Beta(\alpha, \alpha), \quad
         h_k \leftarrow \lambda h_k + (1 - \lambda) h_k[\pi], \quad \tilde y = \lambda y + (1 - \lambda) y[\pi]

      with :math:`h_k` the input of the layer drawn.

    Args:
      key: a random key; where the batch is sharded it must be the same on every device.
      model: a Flax NNX model. The copy that is called shares its variables, so that updates of state (statistics of
        BatchNorm, counts of random streams) and gradients reach the model; the model itself is not altered.
      x: float ``[B, ...]``.
      labels: float ``[B, ...]``: one-hot or probability labels.
      layers: the candidates: ``""`` or ``"input"`` is ``x``, any other is the path of a module, ``"blocks.0"`` for
        ``model.blocks[0]``, whose first argument is mixed (an array, or a tree of arrays, with the batch on axis 0). The
        authors, with a ResNet of four stages: the input, and the inputs of the second and the third. Name layers that are
        called once: one called several times is mixed each time.
      alpha: the Beta parameter, at least 0, default 2. 0 changes nothing.
      within_shard: as of `manifold_mixup`.
      call: ``call(model, x) -> outputs``; None (default) is ``model(x)``.

    Returns:
      ``(outputs, labels)``: what the call gives, and the mixed labels in their dtype.

    Raises:
      ValueError: if a layer is not there (the message lists those that are), is named twice or gets no batch, labels are
        class ids, a shape does not fit, or ``alpha`` is out of range.

    Cost:
      That of `manifold_mixup`; the copy of the model's structure is made while tracing.
      XLA at 2 times [512, 512]: at most 1.2 times the FLOPs and 1.4 times the bytes of the plain gradient, and 0.084 times its
      memory more.

    Use:
      For: few labels, noisy labels.
      When: `manifold_mixup` is wanted in a Flax NNX model whose code you cannot or will not cut into stages. Name the input and
        two or three early blocks.
      Not when: The model is Linen or plain JAX: use `manifold_mixup`, or `manifold_mixup_weights` with `mix_features`. The
        first argument of a named layer has no batch on axis 0.
      Badly with: Layers with shared weights that are called several times, as each call mixes again while the labels are mixed
        once. BatchNorm, and memories by position, as for `manifold_mixup`.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), jnp.tanh, nnx.Linear(8, 10, rngs=rngs))
      >>> x, labels = jnp.ones((4, 3)), jax.nn.one_hot(jnp.arange(4), 10)
      >>> logits, labels = rj.inputs.manifold_mixup_model(
      ...     jax.random.key(0), model, x, labels, layers=("input", "layers.2")
      ... )
      >>> logits.shape, round(float(labels.sum()), 4)
      ((4, 10), 4.0)

    References:
      Verma et al., Manifold Mixup: Better Representations by Interpolating Hidden States, 2018, arXiv 1806.05236.
    """
    name = "inputs.manifold_mixup_model"
    if not isinstance(model, nnx.Module):
        checks.fail(name, "model", "a Flax NNX module", type(model))
    if call is not None:
        checks.function(name, "call", call)
    x = checks.floating(name, "x", x, min_ndim=1)
    labels = check_soft_labels(name, labels, x.shape[0])
    layers = _check_layers(name, layers)
    mixed = nnx.clone(model, variables=False)
    present = {".".join(map(str, path)): module for path, module in nnx.iter_modules(mixed) if callable(module)}
    if len({_path(layer) for layer in layers}) < len(layers):
        checks.fail(name, "layers", "different layers", layers)
    for layer in layers:
        if _path(layer) and _path(layer) not in present:
            known = ", ".join(["'input'", *sorted(repr(path) for path in present if path)])
            checks.fail(name, "layers", f"of the layers {known}", layer)
    lams, lam, partner = _weights(name, key, x.shape[0], alpha, len(layers), within_shard)
    h = x
    for i, layer in enumerate(layers):
        if not _path(layer):
            h = mix_partner(x, lams[i], partner)
            continue
        module: Any = present[_path(layer)]
        # The class changes on the copy alone; `object` does it, as a module's own attributes are its parameters.
        kind: Any = type(module)
        object.__setattr__(module, "__class__", _mixing(kind))
        module.mixing_lam, module.mixing_partner = _Mixing(lams[i]), _Mixing(partner)
    outputs = mixed(h) if call is None else call(mixed, h)
    return outputs, mix_partner(labels, lam, partner)


def manifold_mixup_weights(
    key: Key, batch: int, *, alpha: Strength = 2.0, layers: Sequence[Any] = (0, 1, 2), within_shard: int | None = None
) -> tuple[Array, Array, Array]:
    r"""The draws of manifold mixup, for models that place `layers.mix_features` themselves.

    Formula:
      .. math::
         k \sim U\{0, \ldots, L - 1\}, \quad \lambda \sim Beta(\alpha, \alpha), \quad
         \lambda_l = \lambda \; if \; l = k, \; else \; 1

    Args:
      key: a random key; where the batch is sharded it must be the same on every device.
      batch: the number B of examples.
      alpha: the Beta parameter, at least 0, default 2. At 0 all weights are exactly 1.
      layers: the L candidates, by any names, all different; default (0, 1, 2).
      within_shard: as of `manifold_mixup`.

    Returns:
      ``(lam_per_layer, lam, partner)``: a weight for each candidate in the order of ``layers``, ``[L]`` in float32, of which
      at most one is not 1; that one, for the labels; and the partners, integer ``[B]``, or ``[G, B/G]`` inside blocks.

    Raises:
      ValueError: if ``batch``, ``layers`` or ``within_shard`` does not fit, or ``alpha`` is out of range.

    Cost:
      A permutation of the batch, and a few random numbers.
      XLA at [256]: at most 62 times the FLOPs and 15 times the bytes of a copy of its results, and 4.3 times its memory more.

    Use:
      Part of: `manifold_mixup`, `mix_features`.
      When: Call it where the model's own code mixes at its places, as ``regjax.Hooks`` does: one draw for the layers and the
        labels.
      Badly with: A key that differs between devices, whose places and weights then differ from the labels'.

    Example:
      >>> import jax, regjax as rj
      >>> lams, lam, partner = rj.inputs.manifold_mixup_weights(jax.random.key(0), 4, layers=("image", "stem", "stage 1"))
      >>> lams.shape, bool(lams.min() == lam), sorted(partner.tolist())
      ((3,), True, [0, 1, 2, 3])

    References:
      Verma et al., Manifold Mixup: Better Representations by Interpolating Hidden States, 2018, arXiv 1806.05236.
    """
    name = "inputs.manifold_mixup_weights"
    checks.integer(name, "batch", batch, low=1)
    return _weights(name, key, batch, alpha, len(_check_layers(name, layers)), within_shard)


class _Mixing(nnx.Variable):
    """The weight and the partners that a mixing layer holds: variables, so that transformations of the layer carry them."""


@functools.cache
def _mixing(kind: type) -> type:
    """A subclass of a module's class that mixes its first argument; the same each time, as every class is registered."""

    def __call__(self: Any, h: Any, *args: Any, **kwargs: Any) -> Any:
        lam, partner = self.mixing_lam[...], self.mixing_partner[...]
        return kind.__call__(self, _mix_tree("inputs.manifold_mixup_model", "layers", h, lam, partner), *args, **kwargs)

    return type(kind.__name__, (kind,), {"__call__": __call__, "__module__": kind.__module__, "__doc__": kind.__doc__})


def _mix_tree(name: str, argument: str, h: Any, lam: Array, partner: Array) -> Any:
    def leaf(x: Any) -> Array:
        fits = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating) and x.ndim and x.shape[0] == partner.size
        if not fits:
            checks.fail(name, argument, f"such that mixed features are floating arrays [{partner.size}, ...]", x)
        return mix_partner(x, lam, partner)

    return jax.tree.map(leaf, h)


def _weights(name: str, key: Any, batch: int, alpha: Any, count: int, within_shard: Any) -> tuple[Array, Array, Array]:
    checks.key(name, key)
    checks.number(name, "alpha", alpha, low=0.0)
    check_blocks(name, within_shard, batch)
    layer_key, lam_key, partner_key = jax.random.split(key, 3)
    lam, _ = sample_lam(lam_key, alpha, 1.0, ())
    drawn = jax.random.randint(layer_key, (), 0, count)
    return jnp.where(jnp.arange(count) == drawn, lam, 1), lam, sample_partner(partner_key, batch, "permutation", within_shard)


def _check_layers(name: str, layers: Any) -> tuple[Any, ...]:
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers or len(set(layers)) < len(layers):
        checks.fail(name, "layers", "a list of different layers", layers)
    return tuple(layers)


def _path(layer: Any) -> str:
    """The path of a layer as `nnx.iter_modules` gives it; the input's is empty."""
    return "" if layer == "input" else layer
