"""The suite of steps: whole recipes beside a training step written by hand, and what Flax NNX adds to one."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import regjax as rj
from experiments.bench import networks
from experiments.bench.results import Bound, Panel
from experiments.bench.timing import Subject
from experiments.models import ModelConfig, make_model, split
from experiments.recipes import Setting, make_recipe


class Sizes(NamedTuple):
    """A network and its batch."""

    model: ModelConfig
    batch: int
    image: tuple[int, int, int]
    nnx: bool = False


SHAPES: Mapping[str, Sizes] = {
    "mlp": Sizes(ModelConfig("mlp", width=256, depth=2), 128, (8, 8, 1), nnx=True),
    "resnet": Sizes(ModelConfig("resnet", width=16, depth=1), 64, (32, 32, 3)),
    "wrn": Sizes(ModelConfig("resnet", width=64, depth=2), 128, (32, 32, 3)),
    "vit": Sizes(ModelConfig("vit", width=192, depth=6, patch=4, heads=3), 64, (32, 32, 3)),
    "tiny": Sizes(ModelConfig("mlp", width=8, depth=2), 8, (4, 4, 1), nnx=True),
}
"""The network of digits with what NNX adds to it, a small and a wide ResNet, and a small ViT."""
DEFAULT = ("mlp", "resnet")

PLAIN = "by hand"
RECIPES = (
    "baseline",
    "cutmix",
    "randaugment",
    "manifold_mixup",
    "dropout",
    "drop_path",
    "multi_sample_dropout",
    "neural_collapse_longtail",
    "label_smoothing",
    "maxsup",
    "elr",
    "saf",
    "fgsm",
    "vat",
    "l2",
    "spectral",
    "sam",
    "esam",
    "orthogonal_gradient",
    "lawn",
    "decoupled_weight_decay",
    "proximal_group_lasso",
    "magnitude_pruning",
    "robust",
    "noise_tolerant",
)
"""At least one of every stage, in the order of the pipeline, and the two compositions."""

BOUNDS: Mapping[str, float] = {"baseline": 1.01, "label_smoothing": 1.01, "cutmix": 1.02, "saf": 1.05, "sam": 2.05}
"""FLOPs as multiples of the step by hand; the baseline is also held to its time and its temporary memory."""

MEMORY = 1.02
"""The temporary memory of the baseline likewise: the norm of the gradient needs some."""

NUM_CLASSES, NUM_EXAMPLES, RATE = 10, 1024, 0.02


def panels(sizes: Sizes, threads: int) -> Iterator[Panel]:
    """What is measured together, on one network and batch."""
    batch = example_batch(sizes)
    title = f"{sizes.model.name} of width {sizes.model.width} and depth {sizes.model.depth}, images {list(batch['image'].shape)}"
    subjects = {PLAIN: by_hand(sizes, batch)}
    subjects |= {name: recipe_step(recipe, sizes, batch) for name, recipe in recipes(sizes).items()}
    bounds = [Bound(name, PLAIN, most, "flops") for name, most in BOUNDS.items()]
    bounds += [Bound("baseline", PLAIN, MEMORY, "temporary"), Bound("baseline", PLAIN, 1.05)]
    yield Panel(f"{title}: a step of each recipe", subjects, bounds, PLAIN, images=sizes.batch)
    if sizes.nnx:
        yield overheads(sizes, title)


def recipes(sizes: Sizes) -> dict[str, rj.Recipe]:
    """The named recipes, and a composition of two of them."""
    made = {name: make_recipe(name, setting(sizes)) for name in RECIPES}
    smooth = partial(rj.losses.label_smoothing, alpha=0.1)
    return made | {"cutmix and label_smoothing": dataclasses.replace(made["cutmix"], loss=smooth)}


def setting(sizes: Sizes) -> Setting:
    """What the recipes are given: 50 epochs of as many examples as fill some steps."""
    width = sizes.model.width * (4 if sizes.model.name == "resnet" else 1)
    steps = NUM_EXAMPLES // sizes.batch
    return Setting(NUM_EXAMPLES, NUM_CLASSES, width, steps, epochs=50, total_steps=50 * steps, learning_rate=RATE)


def example_batch(sizes: Sizes) -> dict[str, jax.Array]:
    """Images in [0, 1], labels, and positions in the training set."""
    random = np.random.default_rng(0)
    images = jnp.asarray(random.random((sizes.batch, *sizes.image), np.float32))
    return {"image": images, "label": jnp.arange(sizes.batch) % NUM_CLASSES, "index": jnp.arange(sizes.batch)}


def recipe_step(recipe: rj.Recipe, sizes: Sizes, batch: Mapping[str, jax.Array]) -> Subject:
    """The pipeline's step, its state donated."""
    apply_fn, params, state = split(_model(sizes))
    steps = NUM_EXAMPLES // sizes.batch
    train = rj.make_train_step(recipe, apply_fn, num_classes=NUM_CLASSES, steps_per_epoch=steps)
    carried = train.init(jax.random.key(0), params, state, labels=jnp.arange(NUM_EXAMPLES) % NUM_CLASSES)
    return networks.looped(train.step, carried, batch)


def by_hand(sizes: Sizes, batch: Mapping[str, jax.Array]) -> Subject:
    """The plain step of a user of Flax NNX and optax: split, merge, cross-entropy, SGD with momentum."""
    graph, params, state = nnx.split(_model(sizes), nnx.Param, ...)
    tx = optax.sgd(RATE, momentum=0.9)

    def step(carried: Any, batch: Mapping[str, jax.Array]) -> Any:
        params, state, opt_state = carried

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            # Rebuilt, so that its variables belong to this trace and batch statistics can be written.
            model = nnx.merge(graph, params, jax.tree.map(lambda x: x, state))
            logits, _ = model(batch["image"], key=jax.random.key(0), training=True)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
            return loss, nnx.state(model, nnx.Not(nnx.Param))

        (loss, state), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), state, opt_state), loss

    return networks.looped(step, (params, state, tx.init(params)), batch)


def overheads(sizes: Sizes, title: str) -> Panel:
    """One plain step of one model, called in the ways that NNX offers, and as the pipeline calls it."""
    batch = example_batch(sizes)
    x, y = batch["image"], batch["label"]
    tx = optax.sgd(RATE, momentum=0.9)

    def update(model: Any, optimizer: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        def loss_fn(model: Any) -> jax.Array:
            logits, _ = model(x, key=jax.random.key(0), training=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        loss, gradient = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, gradient)
        return loss

    def pair() -> tuple[Any, Any]:
        model = _model(sizes)
        return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

    def run_of(call: Callable[..., jax.Array], *args: Any) -> Subject:
        return Subject(lambda: jax.block_until_ready(call(*args)))

    compiled = nnx.jit(update)
    subjects = {
        PLAIN: by_hand(sizes, batch),
        "make_train_step": recipe_step(rj.Recipe(optimizer=tx), sizes, batch),
        "nnx.jit": run_of(compiled, *pair(), x, y),
        "nnx.cached_partial": run_of(nnx.cached_partial(compiled, *pair()), x, y),
    }
    bounds = [Bound("make_train_step", PLAIN, 1.05), Bound("make_train_step", "nnx.jit", 1.0)]
    return Panel(f"{title}: what a call costs", subjects, bounds, images=sizes.batch)


def _model(sizes: Sizes) -> Any:
    return make_model(sizes.model, sizes.image, NUM_CLASSES, rngs=nnx.Rngs(0))
