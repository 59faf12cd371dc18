"""The objectives: a training step with each beside the plain one, or a part of a step beside the same part without it."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import regjax as rj
from experiments.bench.cards import case as c
from experiments.bench.cards import objectives_local, passes
from experiments.bench.cards.passes import CLASSES, each, entropy, head, logits, mean, mean_entropy

o, w = rj.objectives, rj.weights
LOGITS, FEATURES = (1024, 1000), (1024, 512)


def _keyed(objective: Callable[..., Any]) -> c.Case:
    """A step with ``f(params, key, x, y)``."""
    return c.against_step(lambda params, x, y, key: objective(params, key, x, y), c.key())


def _plus(penalty: Callable[..., Any]) -> c.Case:
    """A step with ``f(params, key, x, y)`` added to the loss."""
    return _keyed(lambda params, key, x, y: mean(params, x, y) + 0.1 * penalty(params, key, x, y))


def _remembering(objective: Callable[..., Any], memory: Callable[[Any], Any]) -> c.Case:
    """A step with ``f(params, memory, x, y) -> (loss, memory)``, whose memory, made from the parameters, is overwritten."""
    made = memory(c.step().args[0])
    call = lambda params, x, y, state: objective(params, state, x, y)
    return c.against_step(call, made, has_aux=True)._replace(donate=(4,))


def _blocks(number: int) -> tuple[jax.Array, jax.Array]:
    """Batches beside each other."""
    _, _, x, y = c.step().args
    return jnp.stack([x] * number), jnp.stack([y] * number)


def _saf() -> c.Case:
    saf = o.saf(num_examples=50_000, num_classes=CLASSES)
    indices = jnp.arange(c.MLP[0])

    def objective(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        z = logits(params, x)
        penalty, state = saf.apply(state, z, indices, 7)
        return mean_entropy(z, y) + penalty, state

    return _remembering(objective, lambda _: saf.init())


def _mesa() -> c.Case:
    mesa = o.mesa()

    def objective(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        z = logits(params, x)
        penalty = mesa.apply(state, z, logits(state.average, x), 7)
        return mean_entropy(z, y) + penalty, mesa.update(state, params)

    return _remembering(objective, mesa.init)


def _look_sam() -> c.Case:
    look = o.look_sam(mean)
    return _remembering(lambda params, state, x, y: look.apply(state, params, x, y), look.init)


def _booster() -> c.Case:
    boosted = o.booster(lambda params, batch: mean(params, *batch), lambda params, batch: mean(params, *batch))
    harmful = lambda x, y: (jnp.roll(x, 1, 0), jnp.flip(y))
    return c.step(lambda _: lambda params, x, y: boosted(params, (x, y), harmful(x, y)))


def _free_adversarial() -> c.Case:
    free, tx, plain = o.free_adversarial(replays=8), optax.sgd(0.1, momentum=0.9), c.step()

    def step(params: Any, opt_state: Any, x: jax.Array, y: jax.Array, memory: Any) -> Any:
        def replay(carry: Any, x: jax.Array) -> Any:
            params, opt_state = carry
            gradient, by_x = jax.grad(mean, argnums=(0, 1))(params, x, y)
            updates, opt_state = tx.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), by_x

        return free.apply(memory, replay, (params, opt_state), x)

    return plain._replace(call=step, args=(*plain.args, free.init(plain.args[2])), donate=(4,))


def _cross_gradient() -> c.Case:
    components = lambda params, x, y: -jnp.stack([each(params, x, y), entropy(logits(params, x), jnp.flip(y))], -1)
    return c.step(lambda _: o.cross_gradient(components, weights=[0.5, 0.5]))


def _functional_entropy() -> c.Case:
    penalty = o.functional_entropy(lambda params, *parts: logits(params, jnp.concatenate(parts, -1)), num_samples=2)
    return _plus(lambda params, key, x, y: penalty(params, key, jnp.split(x, 2, -1)))


# The head of a network alone.
HEAD = "the loss of the head and its gradient"
head_loss = lambda layer, h, y: mean_entropy(head(layer, h), y)


def _head(classes: int = 100) -> tuple[Any, jax.Array, jax.Array]:
    layer = {"kernel": 0.04 * c.normal(FEATURES[1], classes), "bias": jnp.zeros(classes)}
    return layer, c.normal(*FEATURES), c.ids(FEATURES[0], below=classes)


def _hessian_alignment() -> c.Case:
    layer, h, y = _head()
    aligned = lambda layer, h, y: o.hessian_alignment(head_loss)(layer, h, y)[0]
    domains = lambda x: x.reshape(4, -1, *x.shape[1:])
    gradient = lambda fn: jax.grad(fn, argnums=(0, 1))
    return c.beside(gradient(head_loss), (layer, h, y), HEAD, gradient(aligned), layer, domains(h), domains(y))


def _fishr() -> c.Case:
    layer, h, y = _head()
    fishr, domains = o.fishr(4), c.ids(FEATURES[0], below=4)

    def loss(layer: Any, h: jax.Array, y: jax.Array, domains: jax.Array, state: Any) -> Any:
        penalty, state = fishr.apply(state, h, layer["kernel"].T, layer["bias"], y, domains)
        return head_loss(layer, h, y) + penalty, state

    call = jax.grad(loss, argnums=(0, 1), has_aux=True)
    plain = jax.grad(head_loss, argnums=(0, 1))
    return c.beside(plain, (layer, h, y), HEAD, call, layer, h, y, domains, fishr.init(layer["kernel"].T), donate=4)


def _symmetries() -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """A weight, and the bases of two groups."""
    bases = {f"group_{i}": {"kernel": jnp.linalg.qr(c.normal(1024, rank, seed=i))[0]} for i, rank in enumerate((256, 512))}
    return {"kernel": c.normal(32, 32)}, bases


# Hyperparameters and posteriors.
def _self_tuning() -> c.Case:
    layer = lambda a, b: rj.layers.HyperParams(*(c.normal(*s) / a**0.5 for s in ((a, b), (a, b), (2, b))), scale=jnp.ones(()))
    params = [layer(a, b) for a, b in itertools.pairwise(c.MLP[1:])]
    _, _, x, y = c.step().args

    def loss(params: Any, hyper: jax.Array, key: Any, batch: Any) -> jax.Array:
        z, labels = batch
        for i, layer in enumerate(params):
            z = rj.layers.hyper_dense(layer, z if i == 0 else jax.nn.relu(z), hyper)
        return mean_entropy(z, labels)

    train, _ = o.self_tuning(loss, loss)
    hyper, tuned = jnp.zeros((c.MLP[0], 2)), o.TunedHyper(jnp.zeros(2), jnp.zeros(2))
    gradient = jax.grad(loss), (params, hyper, c.key(), (x, y))
    return c.beside(*gradient, "the gradient of its loss", jax.grad(train), params, tuned, c.key(), (x, y))


def _dass() -> c.Case:
    def loss(params: Any, arch: jax.Array, batch: Any) -> jax.Array:
        x, y = batch
        for i, layer in enumerate(params):
            share = jax.nn.softmax(arch)
            x = head(layer, x if i == 0 else share[0] * jax.nn.relu(x) + share[1] * jnp.tanh(x))
        return mean_entropy(x, y)

    def call(params: Any, x: jax.Array, y: jax.Array, arch: jax.Array, valid: Any) -> Any:
        return jax.value_and_grad(o.dass_objective(loss, loss))(o.SearchParams(params, arch), (x, y), valid)

    _, _, x, y = c.step().args
    return passes.gradient(call, jnp.zeros(2), (1 - x, y))


def _sparse_bilevel() -> c.Case:
    encode = lambda kernel, x: jnp.tanh(x @ kernel)
    tasks = c.normal(32, 64, 256), c.normal(32, 64, seed=1)
    loss = o.sparse_bilevel(encode, functools.partial(o.lasso_predictor, relative_strength=0.1))
    kernel = c.normal(256, 16) / 16
    plain = jax.grad(lambda kernel, x: encode(kernel, x).mean())
    return c.beside(plain, (kernel, tasks[0]), "the encoder's forward and backward pass", jax.grad(loss), kernel, tasks)


def _trajectory_matching() -> c.Case:
    def call(params: Any, x: jax.Array, y: jax.Array) -> Any:
        target = jax.tree.map(lambda leaf: 0.9 * leaf, params)
        loss = lambda x, rate: o.trajectory_matching_loss(logits, x, y, params, target, rate, num_steps=10)
        return jax.value_and_grad(loss, argnums=(0, 1))(x, 0.1)

    return passes.gradient(call)


CASES = {
    # Sharpness.
    "sam": lambda: c.step(o.sam),
    "gsam": lambda: c.step(functools.partial(o.gsam, rho=0.05)),
    "esam": lambda: _keyed(lambda params, key, x, y: o.esam(each)(params, x, y, key=key)),
    "imbsam": lambda: c.step(lambda _: o.imbsam(each, class_counts=jnp.arange(CLASSES), tail_threshold=2)),
    "look_sam": _look_sam,
    "amp": lambda: c.step(o.amp),
    "gradient_norm_penalty": lambda: c.step(functools.partial(o.gradient_norm_penalty, radius=0.05, coefficient=0.01)),
    "booster": _booster,
    "saf": _saf,
    "mesa": _mesa,
    "trajectory_kl": lambda: c.loss(o.trajectory_kl, c.normal(*LOGITS), c.normal(*LOGITS, seed=1)),
    # Penalties, and derivatives by weights and inputs.
    "with_penalty": lambda: c.step(lambda loss_fn: o.with_penalty(loss_fn, w.l2, 1e-4)),
    "gradient_penalty": lambda: c.step(functools.partial(o.gradient_penalty, coefficient=0.1)),
    "jacobian_penalty": lambda: _plus(lambda params, key, x, y: o.jacobian_penalty(logits)(params, key, x)),
    "functional_entropy": _functional_entropy,
    "cross_gradient": _cross_gradient,
    "attach_gradient": lambda: c.case(
        lambda params, direction: o.attach_gradient(1.0, direction, params), c.kernels(), c.kernels(), wrt=0
    ),
    "full_batch_gradient": lambda: passes.gradient(
        lambda params, _, __, *blocks: o.full_batch_gradient(mean, params, *blocks), *_blocks(10)
    ),
    "repeat_with_noise": lambda: c.case(
        functools.partial(o.repeat_with_noise, num_samples=4), c.key(), c.normal(*FEATURES), like="results"
    ),
    # Adversaries.
    "fgsm_attack": lambda: passes.gradient(lambda params, x, y: o.fgsm_attack(mean, params, x, y)),
    "pgd_attack": lambda: passes.gradient(lambda params, x, y: o.pgd_attack(mean, params, x, y)),
    "pgd_evaluate": lambda: passes.gradient(lambda params, x, y, key: o.pgd_evaluate(logits, params, key, x, y), c.key()),
    "adversarial": lambda: _keyed(o.adversarial(mean)),
    "free_adversarial": _free_adversarial,
    "aaer": lambda: _keyed(o.aaer(logits)),
    "aaer_loss": lambda: c.loss(
        lambda after, before, y: o.aaer_loss(before, after, y),
        c.normal(*LOGITS),
        c.normal(*LOGITS, seed=1),
        c.ids(LOGITS[0], below=LOGITS[1]),
    ),
    "elle": lambda: _keyed(o.elle(each)),
    "elle_penalty": lambda: _plus(o.elle_penalty(each, epsilon=8 / 255)),
    "vat": lambda: _plus(lambda params, key, x, y: o.vat(logits, epsilon=1.0)(params, key, x)),
    # Several domains and symmetries.
    "irm_penalty": lambda: c.loss(o.irm_penalty, c.normal(*LOGITS), c.ids(LOGITS[0], below=LOGITS[1])),
    "vrex_penalty": lambda: c.case(
        lambda losses, domains: o.vrex_penalty(losses, domains=domains, num_domains=4),
        c.uniform(1024),
        c.ids(1024, below=4),
        wrt=0,
    ),
    "fishr": _fishr,
    "hessian_alignment": _hessian_alignment,
    "equivariance_penalty": lambda: c.case(
        o.equivariance_penalty, c.normal(32, 32), jnp.linalg.qr(c.normal(1024, 512))[0], wrt=0
    ),
    "equivariance_penalties": lambda: c.case(o.equivariance_penalties, *_symmetries(), wrt=0),
    "soft_equivariance": lambda: c.case(o.soft_equivariance, *_symmetries(), jnp.ones(2), wrt=0),
    # Adaptation and forgetting.
    "tent_loss": lambda: c.loss(o.tent_loss, c.normal(*LOGITS)),
    "eata_loss": lambda: c.loss(o.eata_loss, c.normal(*LOGITS), c.probabilities(LOGITS[1])),
    "eata": lambda: c.loss(
        lambda logits, state: o.eata(LOGITS[1]).apply(state, logits), c.normal(*LOGITS), o.eata(LOGITS[1]).init()
    ),
    "fisher_importance": lambda: passes.gradient(
        lambda params, _, __, *blocks: o.fisher_importance(mean, params, *blocks), *_blocks(10)
    ),
    "bounded_forgetting": lambda: c.step(functools.partial(o.bounded_forgetting, bound=5.0)),
    # Hyperparameters, posteriors, and predictors of tasks.
    "constrain_hyper": lambda: c.case(functools.partial(o.constrain_hyper, ranges=[(0.0, 0.9)] * 16), c.normal(1024, 16)),
    "perturb_hyper": lambda: c.case(
        functools.partial(o.perturb_hyper, batch_size=1024), c.key(), c.normal(16), c.normal(16), like="results"
    ),
    "apply_perturb_hyper": lambda: c.case(o.apply_perturb_hyper, c.normal(16), c.normal(16), c.normal(1024, 16)),
    "self_tuning": _self_tuning,
    "dass_objective": _dass,
    "gaussian_kl_profiled": lambda: c.case(o.gaussian_kl_profiled, c.kernels(), c.kernels(), wrt=(0, 1)),
    "implied_l2_strength": lambda: c.case(
        lambda params, sigma: o.implied_l2_strength(params, sigma, num_examples=50_000, kappa=100.0), c.kernels(), c.kernels()
    ),
    "sample_posterior": lambda: c.case(o.sample_posterior, c.key(), c.kernels(), c.kernels()),
    "apply_sample_posterior": lambda: c.case(o.apply_sample_posterior, c.kernels(), c.kernels(), c.kernels()),
    "lasso_predictor": lambda: c.case(
        functools.partial(o.lasso_predictor, relative_strength=0.1), c.normal(512, 64), c.normal(512, seed=1), wrt=0
    ),
    "group_lasso_predictor": lambda: c.case(
        functools.partial(o.group_lasso_predictor, num_classes=5, relative_strength=0.1),
        c.normal(128, 32),
        c.ids(128, below=5),
        wrt=0,
    ),
    "group_svm_predictor": lambda: c.case(
        functools.partial(o.group_svm_predictor, num_classes=5, relative_strength=0.1),
        c.normal(25, 256),
        c.ids(25, below=5),
        wrt=0,
    ),
    "sparse_bilevel": _sparse_bilevel,
    "trajectory_matching_loss": _trajectory_matching,
    **objectives_local.CASES,
}
UNCOUNTED = {
    "adjust_strengths": "a formula of one number for each group",
    "data_emphasized_elbo": "a formula of single numbers",
    "elle_lambda": "a formula of single numbers",
    "local_loss_weights": "a formula of a block's number on the host",
    "noprop_schedule": "a schedule: a handful of numbers",
    "norm_affine_mask": "reads the names of parameters",
    "perturbation_entropy": "a formula of one number for each hyperparameter",
    "stretched_logit": "a formula of single numbers",
}
