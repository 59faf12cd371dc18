"""Backward-error modulation: the energy of the error is the same on both sides of a block."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, Strength


def modulate_backward(
    fn: Callable[..., Any], *, rho: Strength = 1.0, eps: float = 1e-12, argnum: int = -1, axis_name: Any = None
) -> Callable[..., Any]:
    r"""A block that hands on, in the backward pass, an error of the same mean square as the one that came in.

    Formula:
      .. math:: g_x \leftarrow g_x \, \rho \sqrt{ q(g_y) / (q(g_x) + eps \, q(g_y)) }, \quad q(g) = mean(g^2)

      for ``y = fn(x)`` with the error :math:`g_y` from above and its plain product :math:`g_x` with the block's derivative.
      The value is that of ``fn``, and so are the gradients of all it uses but ``x``: parameters among its arguments, those
      that it closes over, and those of a Flax NNX module. An error of zeros stays one.

    Args:
      fn: a block: ``fn(x)``, ``fn(params, x)``, or a module. Floating arrays in its input and output, which may be trees,
        count together. In a model wrap the block where it is called, ``modulate_backward(self.block)(x)``.
      rho: the ratio of the errors' root mean squares, at least 0, a number or a traced scalar; default 1, which keeps it
        constant. Below 1 it falls from block to block.
      eps: bounds the magnification of an error that vanishes, by :math:`\rho / \sqrt{eps}`; default 1e-12, positive.
      argnum: which positional argument of ``fn`` is x; default -1, the last one.
      axis_name: inside ``jax.shard_map`` with the batch over devices, the name of that axis: then the mean is that over all
        examples; default None.

    Returns:
      A function with the arguments and values of ``fn``.

    Raises:
      ValueError: if ``fn`` is no function, ``rho`` or ``eps`` is out of range, ``argnum`` is no integer or not among the
        arguments of a call, or ``axis_name`` is no name.

    Cost:
      Two means over the activations in the backward pass; no FLOPs forward. It has no forward-mode derivative. Products with
      a Hessian (``jax.jvp`` of ``jax.grad``, ``jax.grad`` of it) run without an error, but differentiate the scaled error, not
      the loss, and are not symmetric.
      XLA at [1024, 512]: at most 1.2 times the FLOPs and 1.5 times the bytes of a dense layer with its gradient, and 0.01 times
      its memory more.

    Use:
      For: unstable training.
      When: Plain networks of tens of layers without shortcuts, whose error vanishes or explodes on its way down: around each
        block, with `orthonormality` of its kernels. ``rho`` below 1 damps it.
      Not when: Shortcuts carry the error already, or a true gradient is needed: what comes out is the gradient of no function
        once the factor is far from 1.
      Badly with: Hessian products, as for `top_eigenvalue`: they differentiate the scaled error, not the loss. `sam` and input
        attacks (`pgd_attack`), whose directions it rescales. Gradient clipping set for the unscaled network.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> block = rj.layers.modulate_backward(lambda w, x: w * x)
      >>> gradients = jax.grad(lambda w, x: jnp.sum(block(w, x)), argnums=(0, 1))(0.5, jnp.array([1.0, 2.0]))
      >>> float(gradients[0]), gradients[1].tolist()
      (3.0, [1.0, 1.0])

    References:
      Xie et al., All You Need is Beyond a Good Init: Exploring Better Solution for Training Extremely Deep Convolutional
      Neural Networks with Orthonormality and Modulation, 2017, arXiv 1703.01827. Reconstructed: the statistic, when the
      authors switch it on, and rho are uncertain. eps is relative to the error that comes in: the mean square of an error
      is often below 1e-12, where an absolute one would put the error out.
    """
    name = "layers.modulate_backward"
    checks.function(name, "fn", fn)
    checks.number(name, "rho", rho, low=0.0)
    checks.number(name, "eps", eps, low=0.0, open_low=True)
    checks.integer(name, "argnum", argnum)
    checks.axis_name(name, axis_name)

    def modulated(*args: Any, **kwargs: Any) -> Any:
        if not -len(args) <= argnum < len(args):
            checks.fail(name, "argnum", f"the place of one of the {len(args)} positional arguments", argnum)
        given = list(args)
        xs = trees.float_leaves(given[argnum])
        dtype = trees.accumulator(*xs)
        xs, energy = _receive(axis_name, xs, jnp.asarray(rho, dtype), jnp.asarray(eps, dtype))
        given[argnum] = trees.with_float_leaves(given[argnum], xs)
        y = fn(*given, **kwargs)
        return trees.with_float_leaves(y, _emit(axis_name, trees.float_leaves(y), energy))

    return modulated


# Two identities around the block. The backward pass of the upper one measures the error that comes in, and sends its energy
# as the cotangent of a number that the lower one issued; there the error is rescaled. So the block itself is differentiated
# as ever, whatever it closes over.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _receive(axis_name: Any, xs: list[Array], rho: Array, eps: Array) -> tuple[list[Array], Array]:
    return xs, jnp.zeros_like(rho)


def _receive_forward(axis_name: Any, xs: list[Array], rho: Array, eps: Array) -> tuple[Any, tuple[Array, Array]]:
    # Not by way of `_receive`: a second derivative would meet its backward pass without the energy that it waits for.
    return (xs, jnp.zeros_like(rho)), (rho, eps)


def _receive_backward(axis_name: Any, options: tuple[Array, Array], errors: tuple[list[Array], Array]) -> Any:
    (rho, eps), (gs, energy) = options, errors
    bounded = _energy(axis_name, gs, energy) + eps * energy
    some = bounded > 0
    factor = rho * trees.safe_sqrt(jnp.where(some, energy / jnp.where(some, bounded, 1), 0))
    rescaled = [(g.astype(factor.dtype) * factor).astype(g.dtype) for g in gs]
    return rescaled, jnp.zeros_like(rho), jnp.zeros_like(eps)


_receive.defvjp(_receive_forward, _receive_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _emit(axis_name: Any, ys: list[Array], energy: Array) -> list[Array]:
    return ys


def _emit_forward(axis_name: Any, ys: list[Array], energy: Array) -> tuple[list[Array], Array]:
    return ys, energy


def _emit_backward(axis_name: Any, energy: Array, gs: list[Array]) -> tuple[list[Array], Array]:
    return gs, _energy(axis_name, gs, energy)


_emit.defvjp(_emit_forward, _emit_backward)


def _energy(axis_name: Any, gs: list[Array], like: Array) -> Array:
    """The mean square over all entries, in the dtype of ``like``."""
    size = max(sum(g.size for g in gs), 1)
    mean = sum((jnp.sum(jnp.square(g.astype(like.dtype))) for g in gs), jnp.zeros_like(like)) / size
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)
