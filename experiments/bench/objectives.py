"""The suite of objectives: what each costs beside the plain step, and SAM against optax's and PyTorch's."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import regjax as rj
from experiments.bench import libraries, networks
from experiments.bench.networks import MOMENTUM, RATE
from experiments.bench.results import Bound, Panel
from experiments.bench.timing import Subject

SHAPES: Mapping[str, tuple[int, ...]] = {
    "mlp": (128, 64, 256, 256, 10),
    "wide": (256, 784, 1024, 1024, 10),
    "resnet": (64, 32, 16),
    "tiny": (8, 8, 8, 3),
}
"""Batch and layers of a network; for the ResNet batch, side of the image and channels of the first of three stages."""
DEFAULT = ("mlp", "wide", "resnet")

PLAIN = "plain step"
RHO = 0.05

ApplyFn = Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]
"""``f(params, state, images) -> (logits, state)``."""


def panels(shape: tuple[int, ...], threads: int) -> Iterator[Panel]:
    """What is measured together, on one batch."""
    resnet = len(shape) == 3
    apply_fn, params, state, x, y = networks.resnet(*shape) if resnet else networks.mlp(*shape)
    described = f"ResNet of {shape[2]} channels, images {list(x.shape)}" if resnet else f"MLP {list(shape[1:])}, batch {shape[0]}"

    def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
        logits, new_state = apply_fn(params, state, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), new_state

    ours, theirs = "regjax sam", "optax.contrib.sam, opaque"
    subjects = {
        PLAIN: networks.step_of(loss_fn, params, x, y),
        ours: networks.step_of(rj.objectives.sam(loss_fn, rho=RHO, has_aux=True), params, x, y),
        theirs: _optax_sam(loss_fn, params, x, y, opaque=True),
        "optax.contrib.sam, transparent": _optax_sam(loss_fn, params, x, y, opaque=False),
    }
    bounds = [
        Bound(ours, PLAIN, 2.02, "flops"),
        Bound(ours, theirs, 1.0),
        Bound(ours, theirs, 1.0, "temporary"),
    ]
    torch = libraries.torch_sam(shape, np.asarray(x), np.asarray(y), rho=RHO, rate=RATE, momentum=MOMENTUM, threads=threads)
    bounds += [Bound(ours, name, 1.0) for name in torch if "SAM" in name]
    yield Panel(f"{described}: a step of SAM", {**subjects, **torch}, bounds)

    if not resnet:
        yield _costs(shape)


def _costs(shape: tuple[int, ...]) -> Panel:
    """A training step with each objective, on one network and batch."""
    _, params, _, x, y = networks.mlp(*shape)
    x = jax.nn.sigmoid(x)  # inputs in [0, 1], as attacks expect them
    size, classes = x.shape[0], shape[-1]
    key, pen, other = jax.random.key(0), rj.objectives, jnp.roll(y, 1)

    def features(params: Any, x: jax.Array) -> jax.Array:
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
        return x

    head = lambda layer, h: h @ layer["kernel"] + layer["bias"]
    logits = lambda params, x: head(params[-1], features(params, x))
    entropy = optax.softmax_cross_entropy_with_integer_labels
    each = lambda params, x, y: entropy(logits(params, x), y)
    mean = lambda params, x, y: each(params, x, y).mean()
    plus = lambda penalty: lambda params, x, y: mean(params, x, y) + 0.1 * penalty(params, x, y)
    keyed = lambda fn: lambda params, x, y: fn(params, key, x, y)
    around = lambda fn: plus(lambda params, x, y: fn(params, key, x))
    halves = lambda a: a.reshape(2, size // 2, *a.shape[1:])
    on_logits = lambda fn: lambda params, x, y: fn(logits(params, x))

    def aligned(params: Any, x: jax.Array, y: jax.Array) -> Any:
        loss = pen.hessian_alignment(lambda layer, h, y: entropy(head(layer, h), y).mean())
        return loss(params[-1], halves(features(params, x)), halves(y))[0]

    def posterior(params: Any, x: jax.Array, y: jax.Array) -> Any:
        drawn = pen.sample_posterior(key, params, jnp.asarray(-4.0))
        kl = pen.gaussian_kl_profiled(params, jax.nn.softplus(jnp.asarray(-4.0)))
        return pen.data_emphasized_elbo(mean(drawn, x, y), kl, num_examples=1000, kappa=100.0)

    harmful = lambda params, batch: mean(params, *batch)
    booster = pen.booster(harmful, harmful)
    joint = pen.functional_entropy(lambda params, *parts: logits(params, jnp.concatenate(parts, -1)), num_samples=2)
    both = lambda params, x, y: joint(params, key, (x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]))
    spread = lambda losses: losses.mean() + pen.vrex_penalty(losses)
    components = lambda params, x, y: -jnp.stack([each(params, x, y), each(params, 1 - x, y)], -1)
    crossed = pen.cross_gradient(components, weights=[0.5, 0.5])
    steps: dict[str, tuple[Callable[..., Any], float | None]] = {
        PLAIN: (mean, None),
        "with_penalty, l2": (pen.with_penalty(mean, rj.weights.l2, 1e-3), None),
        "sam": (pen.sam(mean), 2.02),
        "sam, adaptive": (pen.sam(mean, adaptive="asam"), 2.02),
        "sam, 4 groups": (pen.sam(mean, num_groups=4), None),
        "gsam": (pen.gsam(mean, rho=0.05), 2.02),
        "esam": (lambda params, x, y: pen.esam(each)(params, x, y, key=key), None),
        "imbsam": (pen.imbsam(each, class_counts=jnp.arange(classes), tail_threshold=2), None),
        "gradient_norm_penalty": (pen.gradient_norm_penalty(mean, radius=0.05, coefficient=0.01), 2.02),
        "amp, 1 step": (pen.amp(mean), 2.02),
        "amp, 3 steps": (pen.amp(mean, inner_steps=3), 4.04),
        "gradient_penalty, forward": (pen.gradient_penalty(mean, coefficient=0.1), 2.05),
        "gradient_penalty, central": (pen.gradient_penalty(mean, coefficient=0.1, method="central"), None),
        "gradient_penalty, exact": (pen.gradient_penalty(mean, coefficient=0.1, method="exact"), None),
        "booster": (lambda params, x, y: booster(params, (x, y), (x, other)), None),
        "adversarial, FGSM": (keyed(pen.adversarial(mean, attack="fgsm")), None),
        "adversarial, PGD-10": (keyed(pen.adversarial(mean)), None),
        "elle": (keyed(pen.elle(each)), None),
        "elle_penalty": (plus(keyed(pen.elle_penalty(each, epsilon=0.1))), None),
        "aaer": (keyed(pen.aaer(logits)), None),
        "vat": (around(pen.vat(logits, epsilon=1.0)), None),
        "jacobian_penalty, 1 projection": (around(pen.jacobian_penalty(logits)), None),
        "jacobian_penalty, exact": (around(pen.jacobian_penalty(logits, num_projections=-1)), None),
        "functional_entropy, 2 samples": (plus(both), None),
        "irm_penalty": (on_logits(lambda z: entropy(z, y).mean() + pen.irm_penalty(z, y)), None),
        "hessian_alignment, HGP": (aligned, None),
        "vrex_penalty, 2 domains": (lambda params, x, y: spread(halves(each(params, x, y)).mean(1)), None),
        "cross_gradient, 2 components": (crossed, None),
        "data_emphasized_elbo": (posterior, None),
        "tent_loss": (on_logits(pen.tent_loss), None),
        "eata_loss": (on_logits(lambda z: pen.eata_loss(z)[0]), None),
    }
    subjects = {name: networks.step_of(_with_aux(fn), params, x, y) for name, (fn, _) in steps.items()}
    subjects |= _with_memory(mean, logits, features, params, x, y, classes)
    subjects |= _with_own_parameters(logits, mean, params, x, y, classes)
    bounds = [Bound(name, PLAIN, most, "flops") for name, (_, most) in steps.items() if most is not None]
    bounds.append(Bound("saf", PLAIN, 1.02, "flops"))
    return Panel(f"MLP {list(shape[1:])}, batch {shape[0]}: a step with each objective", subjects, bounds, PLAIN)


def _with_aux(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda params, *batch: (loss_fn(params, *batch), None)


def _with_memory(
    mean: Any, logits: Any, features: Any, params: Any, x: jax.Array, y: jax.Array, classes: int
) -> dict[str, Subject]:
    """Steps whose memory is carried and donated beside the parameters."""
    tx = optax.sgd(RATE, momentum=MOMENTUM)
    indices, epoch = jnp.arange(len(x)), 7

    def stepped(loss_fn: Callable[..., Any], memory: Any) -> Subject:
        def step(carried: Any, *batch: jax.Array) -> Any:
            params, opt_state, memory = carried
            gradient, memory = jax.grad(loss_fn, has_aux=True)(params, memory, *batch)
            updates, opt_state = tx.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state, memory), None

        return networks.looped(step, (params, tx.init(params), memory), x, y)

    saf = rj.objectives.saf(num_examples=50_000, num_classes=classes)
    look = rj.objectives.look_sam(mean, period=5)
    mesa = rj.objectives.mesa()

    def with_saf(params: Any, memory: Any, x: jax.Array, y: jax.Array) -> Any:
        z = logits(params, x)
        penalty, memory = saf.apply(memory, z, indices, epoch)
        return optax.softmax_cross_entropy_with_integer_labels(z, y).mean() + penalty, memory

    def with_mesa(params: Any, memory: Any, x: jax.Array, y: jax.Array) -> Any:
        z = logits(params, x)
        penalty = mesa.apply(memory, z, logits(memory.average, x), epoch)
        return optax.softmax_cross_entropy_with_integer_labels(z, y).mean() + penalty, mesa.update(memory, params)

    fishr = rj.objectives.fishr(2)

    def with_fishr(params: Any, memory: Any, x: jax.Array, y: jax.Array) -> Any:
        h, layer = features(params, x), params[-1]
        penalty, memory = fishr.apply(memory, h, layer["kernel"].T, layer["bias"], y, indices % 2)
        z = h @ layer["kernel"] + layer["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(z, y).mean() + penalty, memory

    return {
        "fishr, 2 domains": stepped(with_fishr, fishr.init(params[-1]["kernel"].T)),
        "saf": stepped(with_saf, saf.init()),
        "mesa": stepped(with_mesa, mesa.init(params)),
        "look_sam, every 5th": stepped(lambda params, memory, x, y: look.apply(memory, params, x, y), look.init(params)),
    }


def _with_own_parameters(logits: Any, mean: Any, params: Any, x: jax.Array, y: jax.Array, classes: int) -> dict[str, Subject]:
    """Steps of networks of about the same size whose form the objective prescribes, and of data in place of weights."""
    key, random, own = jax.random.key(0), np.random.default_rng(0), rj.objectives
    drawn = lambda *shape: jnp.asarray(random.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)
    sizes = [layer["kernel"].shape for layer in params]
    width = sizes[0][1]

    # One block for each layer of the plain network, each of which sees the input and the noisy label.
    blocks = {
        "in": jnp.stack([drawn(x.shape[1] + classes, width)] * len(sizes)),
        "out": jnp.stack([drawn(width, classes)] * len(sizes)),
    }
    noprop = own.NoPropParams(blocks, drawn(classes, classes), jnp.eye(classes))
    schedule = own.noprop_schedule(np.linspace(0.5, 0.9, len(sizes) + 1))
    block = lambda w, z, x: jax.nn.relu(jnp.concatenate([z, x], -1) @ w["in"]) @ w["out"]
    denoise = lambda params, x, y: own.noprop_dt_loss(
        key, params, x, y, schedule=schedule, block_apply=block, head_apply=lambda w, z: z @ w
    )

    hyper = [rj.layers.HyperParams(drawn(a, b), drawn(a, b), drawn(2, b), scale=jnp.ones(())) for a, b in sizes]
    tuned = own.TunedHyper(jnp.zeros(2), jnp.zeros(2))

    def tunable(params: Any, h: jax.Array, key: Any, batch: Any) -> jax.Array:
        z, labels = batch
        for layer in params[:-1]:
            z = jax.nn.relu(rj.layers.hyper_dense(layer, z, h))
        z = rj.layers.hyper_dense(params[-1], z, h)
        return optax.softmax_cross_entropy_with_integer_labels(z, labels).mean()

    train, _ = own.self_tuning(tunable, tunable)
    free = own.free_adversarial(replays=8)
    tx = optax.sgd(RATE, momentum=MOMENTUM)

    def replayed(carried: Any, x: jax.Array, y: jax.Array) -> Any:
        def replay(carry: Any, x: jax.Array) -> Any:
            params, opt_state = carry
            gradient, by_x = jax.grad(mean, argnums=(0, 1))(params, x, y)
            updates, opt_state = tx.update(gradient, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), by_x

        *carry, memory = carried
        (params, opt_state), memory = free.apply(memory, replay, tuple(carry), x)
        return (params, opt_state, memory), None

    matched = lambda images, _, y: own.trajectory_matching_loss(
        logits, images, y, params, jax.tree.map(lambda w: 0.9 * w, params), 0.1, num_steps=3
    )
    return {
        "noprop_dt_loss": networks.step_of(_with_aux(denoise), noprop, x, y),
        "self_tuning, training": networks.step_of(_with_aux(lambda params, x, y: train(params, tuned, key, (x, y))), hyper, x, y),
        "free_adversarial, 8 replays": networks.looped(replayed, (params, tx.init(params), free.init(x)), x, y),
        "trajectory_matching_loss, 3 steps": networks.step_of(_with_aux(matched), x, x, y),
    }


def _optax_sam(loss_fn: Callable[..., Any], params: Any, *batch: jax.Array, opaque: bool) -> Subject:
    """The same with SAM as a wrapper of the optimiser: one call with the gradient function, or two calls for one update."""
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(RHO))
    tx = optax.contrib.sam(optax.sgd(RATE, momentum=MOMENTUM), ascent, sync_period=2, opaque_mode=opaque)

    def step(carried: Any, *batch: jax.Array) -> Any:
        params, opt_state = carried
        of = lambda params, _: jax.grad(loss_fn, has_aux=True)(params, *batch)[0]
        for _ in range(1 if opaque else 2):
            gradient, aux = jax.grad(loss_fn, has_aux=True)(params, *batch)
            updates, opt_state = tx.update(gradient, opt_state, params, **({"grad_fn": of} if opaque else {}))
            params = optax.apply_updates(params, updates)
        return (params, opt_state), aux

    return networks.looped(step, (params, tx.init(params)), *batch)
