"""The diagnostics of curvature, sharpness and gradients, and attacks on gradients, beside passes and products of a network."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import regjax as rj
from experiments.bench.cards import case as c
from experiments.bench.cards import passes

d = rj.diagnostics


def _batches() -> tuple[jax.Array, jax.Array]:
    """Four batches one after another."""
    _, _, x, y = c.step().args
    return jnp.stack([x] * 4), jnp.stack([y] * 4)


def _over_batches(call: Callable[..., Any]) -> c.Case:
    """``f(loss_fn, params, x, y)`` over four batches beside a forward and backward pass of one."""
    return passes.gradient(lambda params, x, y, *batches: call(passes.mean, params, *batches), *_batches())


def _product(params: Any, x: jax.Array, y: jax.Array) -> Any:
    return d.hessian_matvec(passes.mean, params, x, y)(params)


def _beside_product(call: Callable[..., Any], *extra: Any) -> c.Case:
    """``f(matvec, params, *extra)`` with the Hessian of the loss beside one product with it."""
    measured = lambda params, x, y, *extra: call(d.hessian_matvec(passes.mean, params, x, y), params, *extra)
    return passes.gradient(measured, *extra)._replace(plain=_product, of="one product with the Hessian")


def _hessian_variance() -> c.Case:
    def call(params: Any, x: jax.Array, y: jax.Array, key: Any) -> jax.Array:
        product = lambda v, x, y: d.hessian_matvec(passes.mean, params, x[None], y[None])(v)
        return d.hessian_variance(key, product, params, x, y, chunk_size=32)

    return passes.gradient(call, c.key())._replace(plain=_product, of="one product with the Hessian")


def _dropout_inversion_attack() -> c.Case:
    kernels = c.normal(256, 256) / 16, c.normal(256, 10) / 16
    images, masks, labels = c.uniform(8, 16, 16, 1), jnp.ones((8, 256)), c.ids(8, below=10)

    def loss(kernels: Any, x: jax.Array, masks: Any, y: jax.Array) -> jax.Array:
        h = jnp.tanh(x.reshape(len(x), -1) @ kernels[0]) * masks[0]
        return passes.mean_entropy(h @ kernels[1], y)

    def attack(key: Any, grads: Any, labels: jax.Array) -> Any:
        gradient = lambda x, masks, y: jax.grad(loss)(kernels, x, masks, y)
        shapes = {"input_shape": images.shape, "mask_shapes": (masks.shape,)}
        return d.dropout_inversion_attack(key, gradient, grads, labels, rate=0.1, steps=1000, **shapes)

    forward = (kernels, images, (masks,), labels)
    return c.beside(loss, forward, "a forward pass", attack, c.key(), kernels, labels)


def _gradients() -> dict[str, jax.Array]:
    return {f"layer_{i}": c.normal(16, 256, 256, seed=i) for i in range(4)}


CASES = {
    "hessian_matvec": lambda: passes.gradient(_product),
    "ggn_matvec": lambda: passes.gradient(
        lambda params, x, y: d.ggn_matvec(passes.logits, passes.mean_entropy, params, x, y)(params)
    ),
    "lanczos_spectrum": lambda: _beside_product(d.lanczos_spectrum),
    "stochastic_lanczos": lambda: _beside_product(lambda matvec, params, key: d.stochastic_lanczos(key, matvec, params), c.key()),
    "spectral_density": lambda: c.case(d.spectral_density, c.normal(8, 64), c.probabilities(8, 64)),
    "top_eigenvalue": lambda: _beside_product(d.top_eigenvalue),
    "hessian_variance": _hessian_variance,
    "worst_case_sharpness": lambda: _over_batches(d.worst_case_sharpness),
    "average_case_sharpness": lambda: passes.gradient(
        lambda params, x, y, key, *batches: d.average_case_sharpness(key, passes.mean, params, *batches), c.key(), *_batches()
    ),
    "module_robust_criticality": lambda: _over_batches(d.module_robust_criticality),
    "effective_learning_rate": lambda: c.case(lambda weights: d.effective_learning_rate(0.1, weights), c.kernels()),
    "scale_invariance_error": lambda: passes.forward(
        lambda params, x, y: d.scale_invariance_error(passes.logits, params, None, x)
    ),
    "gradient_opposition": lambda: c.case(d.gradient_opposition, c.kernels(), c.kernels()),
    "gradient_cosine_distance": lambda: c.case(d.gradient_cosine_distance, c.kernels(), c.kernels()),
    "gradient_direction_variance": lambda: c.case(d.gradient_direction_variance, _gradients()),
    "gradient_direction_error": lambda: c.case(
        d.gradient_direction_error, _gradients(), {name: grads[0] for name, grads in _gradients().items()}
    ),
    "dropout_inversion_attack": _dropout_inversion_attack,
}
