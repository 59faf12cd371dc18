"""Functional entropy: a model of several inputs is held to use each of them."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key, PyTree
from regjax.objectives.lift import AxisName

_METHODS = ("max_ent", "min_ent", "max_ent_minus")


def functional_entropy(
    apply_fn: Callable[..., Array],
    *,
    num_samples: int = 10,
    norm: float = 2.0,
    estimation: Literal["ent", "var"] = "ent",
    method: Literal["max_ent", "min_ent", "max_ent_minus"] = "max_ent",
    scaling: Literal["per_example", "reference"] = "per_example",
    detach_target: bool = False,
    axis_name: AxisName = None,
) -> Callable[..., Array]:
    r"""Keeps a model from ignoring one of its inputs, by the information that its prediction draws from each.

    Formula:
      Every modality is repeated S times with noise, and :math:`f_i` is the binary cross-entropy, averaged over the classes,
      of the logits at noisy row i with the softmax of the clean logits as target. For modality m:

      .. math:: I_m = \frac{1}{B S} \sum_i \frac{\lVert \partial f_i / \partial z_{m,i} \rVert^2}{f_i}, \quad
        R = \lVert (1 / I_1, \ldots, 1 / I_M) \rVert_p

      the functional Fisher information, which bounds the functional entropy of f from above, and its inverse as a loss.
      ``"min_ent"`` is :math:`\lVert I \rVert_p` and ``"max_ent_minus"`` :math:`0.1 - \lVert I \rVert_p`. ``"var"`` has no
      division by :math:`f_i`: it bounds the variance.

    Args:
      apply_fn: ``apply_fn(params, *modalities) -> logits [B, K]`` for any B, whose derivative by the modalities depends on the
        parameters and is differentiable by them, as of a ReLU network almost everywhere. Batch statistics should be frozen,
        and dropout masks fixed.
      num_samples: S, the noisy rows of each example, at least 1, default 10.
      norm: p, at least 1, default 2.
      estimation: ``"ent"`` (default) or ``"var"``.
      method: ``"max_ent"`` (default), ``"min_ent"`` or ``"max_ent_minus"``.
      scaling: ``"per_example"`` (default) as above; ``"reference"`` as the authors' code, with the mean L of all
        :math:`f_i` in place of each: :math:`\frac{1}{B S} \sum_i \lVert \partial L / \partial z_{m,i} \rVert^2 / L`, about
        :math:`(B S)^2` times less, so that their weight of 1e-10 times that square serves for the first.
      detach_target: whether the target is a constant; default False, as in the authors' code.
      axis_name: the mapped axis (or axes) of `jax.shard_map` or ``pmap`` over which the batch is split: the noise's size and
        the information are those of the whole batch. Not needed under ``jit`` with sharded arrays.

    Returns:
      ``f(params, key, modalities, *, noise=None) -> scalar`` in float32 or better, to be added to the task's loss with a
      weight. ``modalities`` is a tuple of floating arrays ``[B, ...]`` (of tokens, their embeddings), perturbed together as by
      `repeat_with_noise`; ``noise``, a tuple of standard normal arrays ``[B S, ...]``, takes the place of the draws.

    Raises:
      ValueError: if an option, shape or dtype does not fit, or ``apply_fn`` returns no logits ``[B, K]``.

    Cost:
      A clean forward pass, and S of them with a backward pass through the backward pass: about 1 + 3 S forward and backward
      passes, with the activations of B S rows.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 6.4 times the FLOPs and 4.7 times the bytes of a plain training
      step, and 1.3 times its memory more.

    Use:
      For: distribution shift.
      When: A classifier of several modalities leans on one (questions without the image): it raises the information drawn from
        the neglected one. It needs no labels, and continuous modalities or embeddings.
      Not when: One modality truly says nothing: its inverse information grows without bound and forces noise in. Time is short:
        `modality_dropout` costs nothing and also serves missing modalities.
      Badly with: Token ids: give embeddings. BatchNorm by batch statistics of the noisy rows. The authors' weight of 1e-10 with
        scaling='per_example', which is for 'reference'. `modality_dropout` in the same pass, whose nulls carry no information.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> apply_fn = lambda w, a, b: w[0] * a + w[1] * b
      >>> regulariser = rj.objectives.functional_entropy(apply_fn, num_samples=4, method="min_ent")
      >>> a, b = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[0.0, 1.0], [1.0, 0.0]])
      >>> at = lambda w: float(regulariser(jnp.array(w), jax.random.key(0), (a, b)))
      >>> at([1.0, 0.0]) > at([0.5, 0.0]) > at([0.0, 0.0]) == 0.0
      True

    References:
      Gat et al., Removing Bias in Multi-modal Classifiers: Regularization by Maximizing Functional Entropies, 2020, arXiv
      2010.10802. The paper has the information of each example; the authors' code that of ``scaling="reference"``. 1e-12
      is added to I before its inverse.
    """
    name = "objectives.functional_entropy"
    checks.function(name, "apply_fn", apply_fn)
    checks.integer(name, "num_samples", num_samples, low=1)
    checks.number(name, "norm", norm, low=1.0)
    checks.choice(name, "estimation", estimation, ("ent", "var"))
    checks.choice(name, "method", method, _METHODS)
    checks.choice(name, "scaling", scaling, ("per_example", "reference"))
    checks.boolean(name, "detach_target", detach_target)
    checks.axis_name(name, axis_name)

    def regulariser(params: PyTree, key: Any, modalities: Any, *, noise: Any = None) -> Array:
        inputs = _modalities(name, modalities)
        rows = inputs[0].shape[0] * num_samples
        if noise is None:
            keys = jax.random.split(checks.key(name, key), len(inputs))
            draws = [_normal(k, x, num_samples) for k, x in zip(keys, inputs, strict=True)]
        else:
            draws = _given(name, noise, inputs, rows)
        clean = apply_fn(params, *inputs)
        if not isinstance(clean, jax.Array) or clean.shape[:1] != inputs[0].shape[:1] or clean.ndim != 2:
            checks.fail(name, "apply_fn", f"a function that returns logits [{inputs[0].shape[0]}, K]", clean)
        target = jax.nn.softmax(clean.astype(trees.accumulator(clean)), axis=-1)
        target = _repeated(jax.lax.stop_gradient(target) if detach_target else target, num_samples)

        def losses(noisy: list[Array]) -> Array:
            z = apply_fn(params, *noisy)
            z = z.astype(trees.accumulator(z))
            return jnp.mean(jax.nn.softplus(z) - z * target, axis=-1)

        noisy = [_with_noise(x, e, num_samples, axis_name) for x, e in zip(inputs, draws, strict=True)]
        information = fisher_information(losses, noisy, estimation=estimation, scaling=scaling, axis_name=axis_name)
        if method == "max_ent":
            return _norm(1 / (information + 1e-12), norm)
        return _norm(information, norm) if method == "min_ent" else 0.1 - _norm(information, norm)

    return regulariser


def repeat_with_noise(key: Key, x: Any, num_samples: int) -> Array:
    r"""Repeats each example and adds normal noise as large as the features' own spread.

    Formula:
      .. math:: z_{(b, s), d} = x_{bd} + \sigma_d \epsilon_{bsd}, \quad
        \sigma_d^2 = \frac{S}{B S - 1} \sum_b (x_{bd} - \bar x_d)^2

      the unbiased variance of the repeated batch.

    Args:
      key: a random key.
      x: float ``[B, ...]``.
      num_samples: S, at least 1.

    Returns:
      Float ``[B S, ...]`` in the dtype of ``x``, the S rows of an example together. The gradient flows to ``x``, through the
      spread too.

    Raises:
      ValueError: if ``x`` is no floating array with a batch axis, or ``num_samples`` is below 1.

    Cost:
      B S draws for each feature.
      XLA at [4096, 512]: at most 110 times the FLOPs and 8.7 times the bytes of a copy of its results, and 1.7 times its memory
      more.

    Use:
      Part of: `functional_entropy`.
      When: Call it to perturb a batch in proportion to each feature's own spread.
      Badly with: Batches of one example, whose spread is 0, and sparse features, of which a few examples set the size of the
        noise.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> x = jnp.array([[1.0, 0.0], [1.0, 4.0]])
      >>> z = rj.objectives.repeat_with_noise(jax.random.key(0), x, 3)
      >>> z.shape, z[:, 0].tolist()
      ((6, 2), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0])

    References:
      Gat et al., Removing Bias in Multi-modal Classifiers: Regularization by Maximizing Functional Entropies, 2020, arXiv
      2010.10802.
    """
    name = "objectives.repeat_with_noise"
    checks.key(name, key)
    x = checks.floating(name, "x", x, min_ndim=1)
    checks.integer(name, "num_samples", num_samples, low=1)
    return _with_noise(x, _normal(key, x, num_samples), num_samples, None)


def fisher_information(
    losses: Callable[[list[Array]], Array], inputs: list[Array], *, estimation: str, scaling: str, axis_name: AxisName = None
) -> Array:
    """The functional Fisher information ``[M]`` of ``losses(inputs) -> [N]``, N functions of the rows of M inputs."""

    def scaled(inputs: list[Array]) -> tuple[Array, Array]:
        each = losses(inputs)
        return jnp.sum(each), each

    gradients, each = jax.grad(scaled, has_aux=True)(inputs)
    rows = jnp.asarray(each.shape[0], each.dtype)
    mean = jnp.mean(each)
    if axis_name is not None:
        rows, mean = jax.lax.psum(rows, axis_name), jax.lax.pmean(mean, axis_name)
    found = []
    for gradient in gradients:
        square = jnp.square(gradient.astype(each.dtype))
        square = jnp.sum(square, axis=tuple(range(1, square.ndim)))
        if scaling == "reference":
            square = square / jnp.square(rows)  # the gradients are those of the mean
        if estimation == "ent":
            square = square / jnp.maximum(mean if scaling == "reference" else each, 1e-12)
        found.append(jnp.mean(square))
    information = jnp.stack(found)
    return information if axis_name is None else jax.lax.pmean(information, axis_name)


def _modalities(name: str, modalities: Any) -> list[Array]:
    if not isinstance(modalities, (tuple, list)) or not modalities:
        checks.fail(name, "modalities", "a tuple of floating arrays [B, ...]", modalities)
    inputs = [checks.floating(name, f"modalities[{i}]", x, min_ndim=1) for i, x in enumerate(modalities)]
    if any(x.shape[:1] != inputs[0].shape[:1] for x in inputs) or inputs[0].shape[0] < 1:
        expected = "arrays [B, ...] that share the number of examples, at least 1"
        checks.fail(name, "modalities", expected, [x.shape for x in inputs])
    return inputs


def _given(name: str, noise: Any, inputs: list[Array], rows: int) -> list[Array]:
    want = [(rows, *x.shape[1:]) for x in inputs]
    if not isinstance(noise, (tuple, list)) or [jnp.shape(e) for e in noise] != want:
        checks.fail(name, "noise", f"a tuple of arrays of shapes {want}", noise)
    return [jnp.asarray(e) for e in noise]


def _normal(key: Key, x: Array, num_samples: int) -> Array:
    return jax.random.normal(key, (x.shape[0] * num_samples, *x.shape[1:]), trees.accumulator(x))


def _repeated(x: Array, times: int) -> Array:
    """Each row ``times`` in succession; sharded over examples as before."""
    wide = jnp.broadcast_to(x[:, None], (x.shape[0], times, *x.shape[1:]))
    shape = (x.shape[0] * times, *x.shape[1:])
    named = sharding.explicit_sharding(x)
    return wide.reshape(shape) if named is None else jnp.reshape(wide, shape, out_sharding=named)


def _with_noise(x: Array, noise: Array, times: int, axis_name: AxisName) -> Array:
    wide = x.astype(trees.accumulator(x))
    total = lambda t: t if axis_name is None else jax.lax.psum(t, axis_name)
    count = total(jnp.asarray(x.shape[0], wide.dtype))
    centred = wide - total(jnp.sum(wide, axis=0)) / count
    variance = total(jnp.sum(jnp.square(centred), axis=0)) * times / jnp.maximum(count * times - 1, 1)
    rows = _repeated(wide, times)
    return (rows + trees.safe_sqrt(variance) * sharding.placed_like(noise.astype(wide.dtype), rows)).astype(x.dtype)


def _norm(x: Array, p: float) -> Array:
    """The p-norm of positive numbers; relative to the largest, whose power could overflow."""
    largest = jax.lax.stop_gradient(jnp.max(x))
    some = largest > 0
    scale = jnp.where(some, largest, 1)
    total = jnp.sum((x / scale) ** p)
    return jnp.where(some, scale * jnp.where(some, total, 1) ** (1 / p), 0)
