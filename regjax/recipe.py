"""The pipeline written once: a recipe names a technique for each place of a training step, and `make_train_step` runs it.

Nothing in the library needs this module: every technique works alone in any training loop.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from regjax import layers
from regjax.core import checks, sharding, trees
from regjax.core.strength import accepts, at_step, positional_count
from regjax.core.types import Array, Key, Learned, PyTree, Stateful, Strength
from regjax.losses import label_smoothing

cross_entropy = functools.partial(label_smoothing, alpha=0.0)
"""Softmax cross-entropy for class ids and probabilities alike: the loss of the plain method."""


def _unmixed(place: int, x: Array) -> Array:
    """What a model gets at its mixing places where nothing is mixed."""
    return x


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What a model is asked to do at its own places; the ``layers`` field of a recipe.

    Attributes:
      dropout: the rate of the model's dropout layers; a number or a schedule.
      drop_path: the largest drop-path rate, that of the last residual block; a number or a schedule.
      noise: ``f(key, x) -> x`` on the output of every block, such as ``partial(gaussian_noise, std=0.1)`` or ``drop_block``.
      features: ``f(key, features) -> features`` on the penultimate features, such as ``partial(nested_dropout, probs=p)``.
      head: ``f(key, head_fn, features)`` in place of ``head_fn(features)``: logits ``[..., K]``, or ``[M, ..., K]``, such as
        ``multi_sample_dropout``: a leading axis of M samples, over which the losses are averaged.
      manifold: ``f(key, batch_size) -> (lam of each place [L], lam, partner [B])``, such as ``partial(manifold_mixup_weights,
        layers=(0, 1, 2))``: the training step mixes the labels, and the model its hidden activations.
      mix: ``f(place, x) -> x``, which the training step fills in from ``manifold``; a model calls it on what enters place 0
        (the images), 1, 2, ...
    """

    dropout: Strength = 0.0
    drop_path: Strength = 0.0
    noise: Callable[[Key, Array], Array] | None = None
    features: Callable[[Key, Array], Array] | None = None
    head: Callable[[Key, Callable[[Array], Array], Array], Array] | None = None
    manifold: Callable[[Key, int], tuple[Array, Array, Array]] | None = None
    mix: Callable[[int, Array], Array] = _unmixed

    def at(self, step: Any) -> "Hooks":
        """The hooks with every schedule evaluated at a step."""
        rate = lambda value: value(step) if callable(value) else value
        partial = lambda fn: fn and at_step(fn, step)
        functions = {name: partial(getattr(self, name)) for name in ("noise", "features", "head", "manifold")}
        return dataclasses.replace(self, dropout=rate(self.dropout), drop_path=rate(self.drop_path), **functions)


class Outputs(NamedTuple):
    """What a model's forward pass returns: logits, penultimate features, and its new mutable state."""

    logits: Array
    features: Array
    state: PyTree


class ApplyFn(Protocol):
    """A model as a pure function; `experiments.models` shows one way to make it from a Flax NNX module."""

    def __call__(self, params: PyTree, state: PyTree, images: Array, *, key: Key, hooks: Hooks, training: bool) -> Outputs:
        """The forward pass."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training recipe as data: one field for each place of the step, in the order in which data flows.

    A technique that needs arguments is a ``functools.partial``; its strengths may be schedules of the step.

    Attributes:
      inputs: ``f(key, images, labels) -> (images, labels)``, applied in order to the training batch.
      layers: what the model does at its own places: see `Hooks`.
      features: pairs ``(strength, f)`` with ``f(features, labels) -> scalar``, or `Learned` with its own parameters.
      loss: ``f(logits, labels) -> [B]``, or `Stateful` with ``apply(state, logits, labels, indices)``.
      attack: ``f(loss_fn, params, images, labels, key=) -> images``, such as ``partial(pgd_attack, epsilon=0.1)``: what the model
        trains on in place of the images.
      local: pairs ``(strength, f)`` with ``f(logits_fn) -> g``, ``g(params, key, images)`` or ``g(params, key, images, labels)``
        ``-> scalar``, such as ``partial(vat, epsilon=1.0)``: penalties on the function around the images as they were before
        the attack.
      penalties: pairs ``(strength, f)`` with ``f(params) -> scalar``, or `Stateful` with ``apply(state, params)``; added to
        the loss inside the objectives.
      objectives: ``f(loss_fn, has_aux=True) -> loss_fn``; the first one is innermost. One whose argument is called
        ``per_example_loss_fn`` stands first, and gets ``[B]`` losses with the penalties added to each, and one that returns
        `Stateful` stands last.
      gradients: optax transformations of the raw gradient, before the optimiser.
      optimizer: the optax optimiser.
      weights: optax transformations of the update, after the optimiser: decoupled decay, proximal steps.
      feature_optimizer: the optimiser of the parameters of `Learned` techniques.
    """

    inputs: tuple[Callable[..., tuple[Array, Array]], ...] = ()
    layers: Hooks = Hooks()
    features: tuple[tuple[Strength, Callable[..., Array] | Learned], ...] = ()
    loss: Callable[..., Array] | Stateful = cross_entropy
    attack: Callable[..., Array] | None = None
    local: tuple[tuple[Strength, Callable[..., Callable[..., Array]]], ...] = ()
    penalties: tuple[tuple[Strength, Callable[..., Array] | Stateful], ...] = ()
    objectives: tuple[Callable[..., Callable[..., Any]], ...] = ()
    gradients: tuple[optax.GradientTransformation, ...] = ()
    optimizer: optax.GradientTransformation = dataclasses.field(default_factory=lambda: optax.sgd(0.1, momentum=0.9))
    weights: tuple[optax.GradientTransformation, ...] = ()
    feature_optimizer: optax.GradientTransformation = dataclasses.field(default_factory=lambda: optax.sgd(0.5))

    def __post_init__(self) -> None:
        """Refuses what is not of the form that a field takes."""
        for field in ("inputs", "features", "local", "penalties", "objectives", "gradients", "weights"):
            if not isinstance(getattr(self, field), tuple):
                checks.fail("Recipe", field, "a tuple", getattr(self, field))
        for field in ("features", "local", "penalties"):
            for pair in getattr(self, field):
                if not (isinstance(pair, tuple) and len(pair) == 2):
                    checks.fail("Recipe", field, "a tuple of pairs (strength, function)", pair)
                checks.strength("Recipe", f"{field}: strength", pair[0])
        if not isinstance(self.layers, Hooks):
            checks.fail("Recipe", "layers", "a regjax.Hooks", self.layers)

    def transform(self) -> optax.GradientTransformationExtraArgs:
        """The whole gradient side as one optax chain."""
        return optax.chain(*self.gradients, self.optimizer, *self.weights)


class TrainState(NamedTuple):
    """Everything that a step carries to the next: a pytree of arrays, ready for jit, vmap, sharding and Orbax."""

    step: Array
    params: PyTree
    learned: tuple[PyTree, ...]
    opt_state: PyTree
    model_state: PyTree
    memory: Mapping[str, Any]
    key: Key


class TrainStep(NamedTuple):
    """``init(key, params, model_state) -> TrainState`` and ``step(state, batch) -> (TrainState, metrics)``, both pure."""

    init: Callable[..., TrainState]
    step: Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, Mapping[str, Array]]]


def make_train_step(
    recipe: Recipe,
    apply_fn: ApplyFn,
    *,
    num_classes: int,
    steps_per_epoch: int = 1,
    axis_name: str | None = None,
    microbatches: int = 1,
) -> TrainStep:
    """Makes the training step of a recipe: inputs, layers, features, loss, penalties, objectives, gradients, weights.

    Formula:
      ``loss(params) = objectives(mean(loss(model(attack(inputs(batch))), labels)) + sum strength * (feature, local, penalty))``,
      ``params <- params + weights(optimizer(gradients(grad loss)))``.

    Args:
      recipe: the techniques.
      apply_fn: the model, ``apply_fn(params, state, images, key=, hooks=, training=) -> Outputs``.
      num_classes: K; integer labels become one-hot when the recipe mixes inputs.
      steps_per_epoch: turns the step into the epoch, for losses that ask for it.
      axis_name: the mapped axis over which gradients, loss and model state are averaged, inside ``shard_map`` or ``pmap``.
      microbatches: into how many equal parts a batch goes through the network, one after the other, before the one update by
        their mean gradient (in float32); part ``j`` of ``m`` has the examples ``j, j + m, j + 2m, ...``, so that each part of a
        batch that is sharded over devices is. The step is that of the whole batch, up to rounding, for any loss of each example
        alone, memories by example and penalties included. What looks at the batch as a set looks at a part: features and set
        losses, partners of mixing, batch normalisation (whose running statistics move m times), perturbations of `sam` and kin
        (each part its own, as with ``num_groups=m``), and random draws are others. A memory of the whole step (a spectral
        direction, an objective's average) moves m times.

    Returns:
      A `TrainStep`: ``init(key, params, model_state={}, labels=None)`` (``labels``: all training labels [N], for memories
      that start from them) and ``step(state, batch)`` with ``batch = {"image", "label"}`` and, for stateful losses,
      ``"index"`` (positions in the training set). Neither is compiled: wrap ``step`` in ``jax.jit`` with the state donated.

    Raises:
      ValueError: if an argument is not of the stated form, the batch lacks what the loss needs or does not divide by
        ``microbatches``, or a head hook with several samples meets a stateful loss.

    Cost:
      That of its techniques; the step itself adds nothing. Microbatches divide the memory of activations by their number and
      add one copy of the parameters.

    Example:
      >>> import functools, jax, jax.numpy as jnp, regjax as rj
      >>> recipe = rj.Recipe(loss=functools.partial(rj.losses.maxsup, weight=0.1), penalties=((1e-3, rj.weights.l2),))
      >>> def apply_fn(params, state, images, *, key, hooks, training):
      ...     return rj.Outputs(images @ params["kernel"], images, state)
      >>> train = rj.make_train_step(recipe, apply_fn, num_classes=3)
      >>> state = train.init(jax.random.key(0), {"kernel": jnp.zeros((4, 3))})
      >>> state, metrics = jax.jit(train.step)(state, {"image": jnp.ones((2, 4)), "label": jnp.array([0, 1])})
      >>> round(float(metrics["loss"]), 4)
      1.0986
    """
    name = "make_train_step"
    checks.integer(name, "num_classes", num_classes, low=1)
    checks.integer(name, "steps_per_epoch", steps_per_epoch, low=1)
    checks.integer(name, "microbatches", microbatches, low=1)
    if not isinstance(recipe, Recipe):
        checks.fail(name, "recipe", "a regjax.Recipe", recipe)
    transform, feature_transform = recipe.transform(), recipe.feature_optimizer
    takes_soft_labels = bool(recipe.inputs) or recipe.layers.manifold is not None
    by_example = bool(recipe.objectives) and _takes_examples(recipe.objectives[0])

    def init(key: Key, params: PyTree, model_state: PyTree = None, labels: Array | None = None) -> TrainState:
        key, *keys = jax.random.split(key, 3)
        learners = [fn for _, fn in recipe.features if isinstance(fn, Learned)]
        learned = tuple(fn.init(jax.random.fold_in(keys[0], i)) for i, fn in enumerate(learners))
        keepers = [fn for _, fn in recipe.penalties if isinstance(fn, Stateful)]
        memory: dict[str, Any] = {
            "penalties": tuple(fn.init(jax.random.fold_in(keys[1], i), params) for i, fn in enumerate(keepers))
        }
        if isinstance(recipe.loss, Stateful):
            known = {"labels": labels} if labels is not None and accepts(recipe.loss.init, "labels") else {}
            memory["loss"] = recipe.loss.init(**known)
        if isinstance(outermost := _wrapped(recipe.objectives, lambda params: jnp.zeros(())), Stateful):
            memory["objectives"] = outermost.init(params)
        opt_state = {"model": transform.init(params), "features": feature_transform.init(learned)}
        model_state = {} if model_state is None else model_state
        return TrainState(jnp.zeros((), jnp.int32), params, learned, opt_state, model_state, memory, key)

    def loss_fn(
        params: PyTree, batch: Mapping[str, Array], key: Key, *, learned: Any, model_state: Any, memory: Any, step: Array
    ) -> tuple[Array, Any]:
        input_key, layer_key = jax.random.split(key)
        images, labels = batch["image"], batch["label"]
        hard_labels = labels
        if takes_soft_labels and jnp.issubdtype(labels.dtype, jnp.integer):
            labels = jax.nn.one_hot(labels, num_classes)
        for i, technique in enumerate(recipe.inputs):
            images, labels = at_step(technique, step)(jax.random.fold_in(input_key, i), images, labels)

        hooks = recipe.layers.at(step)
        if hooks.manifold is not None:
            manifold_key, layer_key = jax.random.split(layer_key)
            lams, lam, partner = hooks.manifold(manifold_key, images.shape[0])
            mix = lambda place, x: layers.mix_features(x, lam=lams[place], partner=partner) if place < len(lams) else x
            labels = layers.mix_features(labels, lam=lam, partner=partner)
            hooks = dataclasses.replace(hooks, mix=mix)
        forward = lambda params, images: apply_fn(params, model_state, images, key=layer_key, hooks=hooks, training=True)

        before = images
        if recipe.attack is not None:
            fn = cross_entropy if isinstance(recipe.loss, Stateful) else at_step(recipe.loss, step)
            attacked = lambda params, images, labels: jnp.mean(_sampled(fn, forward(params, images).logits, labels, batch))
            images = at_step(recipe.attack, step)(attacked, params, images, labels, key=jax.random.fold_in(key, 2))
        out = forward(params, images)

        per_example, loss_memory = _loss(recipe.loss, out.logits, labels, batch, memory, step, steps_per_epoch, axis_name)
        total = jnp.mean(per_example)
        metrics = {"task_loss": total}
        for value in _features(recipe.features, learned, out.features, hard_labels, step):
            total = total + value
        if recipe.local:
            logits_fn = lambda params, images: forward(params, images).logits
            total = total + _local(recipe.local, logits_fn, params, jax.random.fold_in(key, 3), before, labels, step)
        penalty, penalty_memory = _penalties(recipe.penalties, params, memory["penalties"], step)
        metrics["penalty"] = penalty
        new_memory = {**memory, "penalties": penalty_memory, **({"loss": loss_memory} if "loss" in memory else {})}
        total = total + penalty
        value = per_example + (total - metrics["task_loss"]) if by_example else total
        return value, (out.state, new_memory, metrics)

    def step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, Mapping[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        if axis_name is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))

        def part(model_state: PyTree, memory: Any, batch: Mapping[str, Array], key: Key) -> tuple[Any, PyTree, Any, Any]:
            def total(params: PyTree, learned: PyTree) -> Any:
                carried = {"learned": learned, "model_state": model_state, "memory": memory, "step": state.step}
                objective = _wrapped(recipe.objectives, functools.partial(loss_fn, **carried))
                if isinstance(objective, Stateful):
                    kept = memory["objectives"]
                    value, (kept, (new_state, new_memory, metrics)) = objective.apply(kept, params, batch, key, step=state.step)
                    return value, (new_state, {**new_memory, "objectives": kept}, metrics)
                return objective(params, batch, key, step=state.step) if recipe.objectives else objective(params, batch, key)

            # Only the model's parameters pass through the objectives: centres and the like are not perturbed.
            (loss, aux), grads = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(state.params, state.learned)
            new_state, new_memory, metrics = _ungrouped(aux, model_state, memory)
            return grads, new_state, new_memory, {**metrics, "loss": loss}

        carried = (state.model_state, state.memory)
        whole = part if microbatches == 1 else functools.partial(_in_parts, part, microbatches, (state.params, state.learned))
        grads, model_state, memory, metrics = whole(*carried, batch, key)
        if axis_name is not None:
            mean = lambda x: jax.lax.pmean(x, axis_name) if trees.is_float(x) else x
            # A jax.shard_map that checks gives the sum of the devices' gradients by parameters that they have in common.
            summed = lambda g: axis_name in sharding.varying(batch["image"]) - sharding.varying(g)
            grads = jax.tree.map(lambda g: g / jax.lax.axis_size(axis_name) if summed(g) else mean(g), grads)
            model_state, metrics = jax.tree.map(mean, (model_state, metrics))
        metrics["grad_norm"] = trees.global_norm(grads[0])
        updates, opt_state = transform.update(grads[0], state.opt_state["model"], state.params, value=metrics["loss"])
        params = optax.apply_updates(state.params, updates)
        updates, feature_state = feature_transform.update(grads[1], state.opt_state["features"], state.learned)
        learned = optax.apply_updates(state.learned, updates)
        opt_states = {"model": opt_state, "features": feature_state}
        return TrainState(state.step + 1, params, learned, opt_states, model_state, memory, state.key), metrics

    return TrainStep(init, step)


def _takes_examples(objective: Callable[..., Any]) -> bool:
    return "per_example_loss_fn" in inspect.signature(objective).parameters


def _wrapped(objectives: tuple[Callable[..., Any], ...], loss_fn: Callable[..., Any]) -> Any:
    """The loss with all objectives around it: a loss function, or `Stateful`."""
    for i, wrap in enumerate(objectives):
        if isinstance(loss_fn, Stateful):
            checks.fail("make_train_step", "objectives", "a tuple in which what keeps a memory is the last", objectives)
        if i and _takes_examples(wrap):
            checks.fail("make_train_step", "objectives", "a tuple whose first alone takes a loss per example", objectives)
        loss_fn = wrap(loss_fn, has_aux=True)
    return loss_fn


def _in_parts(part: Any, count: int, like: Any, model_state: PyTree, memory: Any, batch: Mapping[str, Array], key: Key) -> Any:
    """The passes of a batch cut into parts: the mean gradient and metrics, and the memories after the last part."""
    size = len(batch["label"])
    if size % count:
        checks.fail("make_train_step", "microbatches", f"a divisor of the batch of {size}", count)
    parts = jax.tree.map(lambda x: sharding.split_rows(x, count), dict(batch))
    wide = lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)) if trees.is_float(x) else x
    sums = jax.tree.map(lambda x: jnp.zeros_like(wide(x)), like)
    begin = (sums, model_state)
    if sharding.varying(batch["label"]):  # in a jax.shard_map that checks: what will differ between devices must from the start
        first = jax.tree.map(lambda x: x[0], parts)
        end: list[Any] = []
        jax.eval_shape(lambda: end.append(jax.tree.map(sharding.varying, part(model_state, memory, first, key)[:2])))
        vary = lambda x, axes: jax.lax.pcast(x, tuple(axes - sharding.varying(x)), to="varying") if axes else x
        begin = jax.tree.map(vary, begin, end[0])
    sums, model_state = begin

    def one(carry: Any, xs: Any) -> Any:
        sums, model_state, memory = carry
        index, batch = xs
        grads, model_state, memory, metrics = part(model_state, memory, batch, jax.random.fold_in(key, index))
        return (jax.tree.map(lambda a, g: a + wide(g), sums, grads), model_state, memory), metrics

    (sums, model_state, memory), metrics = jax.lax.scan(one, (sums, model_state, memory), (jnp.arange(count), parts))
    grads = jax.tree.map(lambda a, x: (a / count).astype(x.dtype) if trees.is_float(x) else a, sums, like)
    return grads, model_state, memory, jax.tree.map(lambda x: jnp.mean(x, 0), metrics)


def _ungrouped(aux: Any, old_state: PyTree, old_memory: Any) -> Any:
    """The carried values of one pass: where an objective worked on groups of the batch, the mean over the groups."""

    def one(new: Array, old: Any) -> Array:
        if jnp.shape(new) == jnp.shape(old):
            return new
        return jnp.mean(new, axis=0) if trees.is_float(new) else new[0]

    model_state, memory, metrics = aux
    returned: Any = jax.tree.structure(model_state)
    given: Any = jax.tree.structure(old_state)
    if returned != given:
        expected = f"given to `init` as apply_fn returns it, {returned}"
        checks.fail("make_train_step", "model_state", expected, checks._Verbatim(str(given)))
    if jax.tree.map(jnp.shape, memory) != jax.tree.map(jnp.shape, dict(old_memory)):
        checks.fail(
            "make_train_step", "objectives", "without groups of the batch (num_groups=1) beside techniques with memory", "groups"
        )
    return jax.tree.map(one, model_state, old_state), memory, jax.tree.map(jnp.mean, metrics)


def _loss(
    loss: Any, logits: Array, labels: Array, batch: Any, memory: Any, step: Array, steps_per_epoch: int, axis_name: str | None
) -> tuple[Array, Any]:
    """The loss of each example; logits with a leading axis of samples are averaged over it after the loss."""
    if not isinstance(loss, Stateful):
        return _sampled(at_step(loss, step), logits, labels, batch), None
    if _has_samples(logits, batch):
        expected = "one that reduces its samples to logits [B, K] (reduce='logits') beside a loss with memory"
        checks.fail("make_train_step", "layers.head", expected, logits)
    if "index" not in batch:
        checks.fail("make_train_step", "batch", "a mapping with 'index' for a loss with memory", sorted(batch))
    context = {"step": step, "epoch": step // steps_per_epoch}
    extra = {key: value for key, value in context.items() if accepts(loss.apply, key)}
    values, new_memory = loss.apply(memory["loss"], logits, labels, batch["index"], **extra)
    if axis_name is not None:
        # Every device keeps the whole memory, so every device writes the rows of all.
        rows = (jax.lax.stop_gradient(logits), labels, batch["index"])
        checked = axis_name in sharding.varying(logits)
        whole = jax.lax.all_gather(rows, axis_name, tiled=True, to="invarying" if checked else "varying")
        _, new_memory = loss.apply(memory["loss"], *whole, **extra)
    return values, new_memory


def _has_samples(logits: Array, batch: Any) -> bool:
    return logits.ndim == batch["label"].ndim + (2 if jnp.issubdtype(batch["label"].dtype, jnp.integer) else 1)


def _sampled(fn: Callable[..., Array], logits: Array, labels: Array, batch: Any) -> Array:
    """A loss without memory, averaged over the samples where the head gives several."""
    if _has_samples(logits, batch):
        return jnp.mean(jax.vmap(lambda z: fn(z, labels))(logits), axis=0)
    return fn(logits, labels)


def _local(pairs: Any, logits_fn: Any, params: PyTree, key: Key, images: Array, labels: Array, step: Array) -> Array:
    """The sum of the penalties on the function around the images, with their strengths."""
    total = jnp.zeros(())
    for i, (strength, make) in enumerate(pairs):
        fn = at_step(make, step)(logits_fn)
        known = (labels,) if positional_count(fn) > 3 else ()
        value = fn(params, jax.random.fold_in(key, i), images, *known)
        total = total + (strength(step) if callable(strength) else strength) * value
    return total


def _features(pairs: Any, learned: Any, features: Array, labels: Array, step: Array) -> list[Array]:
    """The feature regularisers with their strengths; each `Learned` one takes the next entry of ``learned``."""
    # Spread over the axis of the batch on an Explicit mesh, they could not meet the features: every device takes them whole.
    own, values = iter(jax.tree.map(sharding.replicate, learned)), []
    for strength, fn in pairs:
        value = fn.loss(next(own), features, labels, step) if isinstance(fn, Learned) else at_step(fn, step)(features, labels)
        values.append((strength(step) if callable(strength) else strength) * value)
    return values


def _penalties(pairs: Any, params: PyTree, memories: Any, step: Array) -> tuple[Array, tuple[Any, ...]]:
    """The sum of the weight penalties with their strengths, and the new memories of the stateful ones."""
    own, kept, total = iter(memories), [], jnp.zeros(())
    for strength, fn in pairs:
        if isinstance(fn, Stateful):
            value, memory = fn.apply(next(own), params)
            kept.append(memory)
        else:
            value = at_step(fn, step)(params)
        total = total + (strength(step) if callable(strength) else strength) * value
    return total, tuple(kept)
