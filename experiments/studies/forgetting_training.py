"""The data, the network and the training runs of the study of forgetting: one compiled program for each kind of method."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import regjax as rj
from experiments.data import DataConfig, load_arrays
from experiments.models import ModelConfig, make_model

CLASSES = 10
KINDS = ("lora", "full", "ascent", "retained")
"""What is trained on what: adapters or all weights by the bounded loss, all weights upwards, all weights on what is kept."""


class Part(NamedTuple):
    """Images ``[N, 8, 8, 1]`` and their labels ``[N]``."""

    images: Any
    labels: Any


class Data(NamedTuple):
    """The training images, those that methods are judged on, and the two classes to forget ``[2]``; or those of all seeds."""

    train: Part
    judged: Part
    classes: Any


class Split(NamedTuple):
    """Which classes are to be forgotten and which kept, booleans ``[10]``; a class forgotten before is neither."""

    forget: Any
    retain: Any


class Strengths(NamedTuple):
    """What a method is set to; numbers, so that methods of a kind share a program.

    Attributes:
      learning_rate: at the beginning; it decays to 0 along a cosine.
      beta: of the bounded loss of the forgotten classes.
      alpha: of the group lasso.
      warm_up: the share of the steps without it.
      away: of the bounded distance of forgotten features from their prototypes.
      near: of the distance of kept features from theirs.
      l1: of all weights, at the beginning; it falls to 0.
    """

    learning_rate: Any
    beta: Any = 0.0
    alpha: Any = 0.0
    warm_up: Any = 0.0
    away: Any = 0.0
    near: Any = 0.0
    l1: Any = 0.0


class Outcome(NamedTuple):
    """What a run ends with; every entry with a leading axis of seeds.

    Attributes:
      params: of the plain network, adapters merged.
      curve: at every point the accuracies on the first class to forget, the second, and the eight others ``[points + 1, 3]``.
      norms: at every point the norm of the adapters of each block ``[points + 1, blocks]``; 0 without adapters.
      change: by how much the feed-forward kernels of each block changed, a norm ``[blocks]``.
      merge_gap: the largest difference of logits between the adapted and the merged network.
      train_logits: of the training images.
      logits: of the judged images.
    """

    params: Any
    curve: Any
    norms: Any
    change: Any
    merge_gap: Any
    train_logits: Any
    logits: Any


def load(config: Any, seeds: Sequence[int]) -> Data:
    """The data of every seed ``[S, ...]``, with two classes drawn at random for each."""
    every = []
    for seed in seeds:
        same = DataConfig(name="digits", batch_size=config.retain_batch, validation=config.validation, seed=seed)
        splits = load_arrays(same)
        of = lambda split: Part(np.asarray(split.images, np.float32), np.asarray(split.labels, np.int32))
        classes = np.random.default_rng(seed).choice(CLASSES, 2, replace=False).astype(np.int32)
        every.append(Data(of(splits.train), of(getattr(splits, config.judged_on)), classes))
    stack = lambda *leaves: np.stack([leaf[: min(map(len, leaves))] for leaf in leaves])
    return jax.tree.map(stack, *every)


def splits(classes: np.ndarray) -> dict[str, Split]:
    """The tasks of every seed: ``both`` classes at once, or the ``first`` and then the ``second``."""
    is_class = np.asarray(classes)[:, :, None] == np.arange(CLASSES)
    first, second = is_class[:, 0], is_class[:, 1]
    kept = ~(first | second)
    return {"both": Split(first | second, kept), "first": Split(first, ~first), "second": Split(second, kept)}


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over examples."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


class Drawer:
    """Draws batches, with replacement, of the examples whose class is chosen.

    Args:
      part: the examples.
      chosen: booleans ``[10]``.
    """

    def __init__(self, part: Part, chosen: jax.Array):
        self.part, among = part, chosen[part.labels]
        self.order, self.count = jnp.argsort(~among), jnp.sum(among)

    def __call__(self, key: Any, size: int) -> Part:
        """A batch."""
        rows = self.order[jax.random.randint(key, (size,), 0, self.count)]
        return Part(self.part.images[rows], self.part.labels[rows])


class Programs:
    """The compiled programs: ``fit`` trains a network from its start, ``forget`` makes one forget; both for all seeds at once.

    Args:
      config: a `ForgettingConfig`.
    """

    def __init__(self, config: Any):
        self.config = config
        self.model = ModelConfig("vit", config.width, config.depth, config.patch, config.heads)
        self.graph, self.rest = self._split(0)[::2]
        self._compiled: dict[str, Any] = {}

    def _split(self, seed: int) -> tuple[Any, Any, Any]:
        return nnx.split(make_model(self.model, (8, 8, 1), CLASSES, rngs=nnx.Rngs(seed)), nnx.Param, ...)

    def initialise(self, seeds: Sequence[int]) -> Any:
        """The parameters of every seed ``[S, ...]``."""
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(self._split(seed)[1] for seed in seeds))

    def network(self, params: Any) -> Any:
        """The module with these parameters."""
        return nnx.merge(self.graph, params, self.rest)

    def prototypes(self, params: Any, data: Data) -> jax.Array:
        """The mean feature of each class of every seed's training images ``[S, 10, D]``."""
        of = lambda p, part: rj.features.class_prototypes(self.network(p)(part.images)[1], part.labels, CLASSES)
        return jax.jit(jax.vmap(of))(params, data.train)

    def fit(self, params: Any, data: Data, kept: Any, keys: Any) -> tuple[Outcome, float]:
        """Trains networks on the classes ``kept [S, 10]``; returns the outcome and the seconds that it took, compiled."""
        return self._timed("fit", self._fit, (params, data, kept, keys), (0, 0, 0, 0))

    def forget(
        self, kind: str, params: Any, prototypes: Any, data: Data, split: Split, keys: Any, strengths: Strengths
    ) -> tuple[Outcome, float]:
        """Makes networks forget; returns the outcome and the seconds that it took, compiled.

        Args:
          kind: of `KINDS`.
          params: of every seed.
          prototypes: of every seed, of the network before any forgetting.
          data: of every seed.
          split: of every seed.
          keys: one of each seed.
          strengths: the same for every seed.

        Returns:
          An `Outcome`, and seconds.
        """
        strengths = Strengths(*(jnp.float32(value) for value in strengths))
        arguments = params, prototypes, data, split, keys, strengths
        return self._timed(kind, functools.partial(self._forget, kind), arguments, (0, 0, 0, 0, 0, None))

    def _timed(self, name: str, run: Callable[..., Any], arguments: Any, axes: Any) -> tuple[Outcome, float]:
        if name not in self._compiled:
            self._compiled[name] = jax.jit(jax.vmap(run, in_axes=axes)).lower(*arguments).compile()
        begun = time.perf_counter()
        outcome = jax.block_until_ready(self._compiled[name](*arguments))
        return outcome, time.perf_counter() - begun

    def _fit(self, params: Any, data: Data, kept: jax.Array, key: Any) -> Outcome:
        config, draw = self.config, Drawer(data.train, kept)
        rates = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, config.fit_steps // 10, config.fit_steps)

        def loss(params: Any, key: Any, step: Any) -> jax.Array:
            batch = draw(key, config.retain_batch)
            return cross_entropy(self.network(params)(batch.images)[0], batch.labels)

        optimizer = optax.adamw(rates, weight_decay=config.weight_decay)
        after, curve, norms = self._train(loss, optimizer, params, data, key, config.fit_steps, self.network)
        return self._outcome(params, after, curve, norms, data, 0.0)

    def _forget(
        self, kind: str, params: Any, prototypes: Any, data: Data, split: Split, key: Any, strengths: Strengths
    ) -> Outcome:
        config = self.config
        decay = optax.cosine_decay_schedule(1.0, config.steps)
        rate = lambda step: strengths.learning_rate * decay(step)
        bounded = kind in ("lora", "full")
        optimizer = optax.adam(rate) if bounded else optax.sgd(rate, momentum=0.9)
        adapt_key, train_key = jax.random.split(key)
        network, trained = self.network, params
        if kind == "lora":
            make = functools.partial(rj.layers.LoRALinear, rank=config.rank)
            feed_forward = lambda path, layer: path.split("/")[-1] in ("up", "down")
            adapted = rj.layers.adapt(self.network(params), make, where=feed_forward, rngs=nnx.Rngs(adapt_key))
            graph, trained, rest = nnx.split(adapted, rj.layers.AdapterParam, ...)
            network = lambda adapters: nnx.merge(graph, adapters, rest)
        loss = self._loss(kind, network, prototypes, data, split, strengths)
        after, curve, norms = self._train(loss, optimizer, trained, data, train_key, config.steps, network)
        gap = jnp.float32(0.0)
        if kind == "lora":
            before, after = network(after), rj.layers.merge(network(after))
            gap = jnp.max(jnp.abs(before(data.judged.images)[0] - after(data.judged.images)[0]))
            after = nnx.state(after, nnx.Param)
        return self._outcome(params, after, curve, norms, data, gap)

    def _loss(
        self, kind: str, network: Callable[[Any], Any], prototypes: Any, data: Data, split: Split, strengths: Strengths
    ) -> Callable[[Any, Any, Any], jax.Array]:
        config, retained, forgotten = self.config, Drawer(data.train, split.retain), Drawer(data.train, split.forget)
        l1 = rj.schedules.unlearning_alpha(alpha=strengths.l1, epochs=10, steps_per_epoch=max(config.steps // 10, 1))
        bounded = rj.objectives.bounded_forgetting

        def ascent(params: Any, key: Any, step: Any) -> jax.Array:
            batch = forgotten(key, config.forget_batch)
            return -cross_entropy(network(params)(batch.images)[0], batch.labels)

        def retain(params: Any, key: Any, step: Any) -> jax.Array:
            batch = retained(key, config.retain_batch)
            loss = cross_entropy(network(params)(batch.images)[0], batch.labels)
            return loss + l1(step) * rj.weights.l1(params, where="all")

        def forget(params: Any, key: Any, step: Any) -> jax.Array:
            keys = jax.random.split(key)
            keep, lose = retained(keys[0], config.retain_batch), forgotten(keys[1], config.forget_batch)
            logits, features = network(params)(jnp.concatenate([keep.images, lose.images]))
            (z, z_lost), (h, h_lost) = (jnp.split(x, [config.retain_batch]) for x in (logits, features))
            loss = cross_entropy(z, keep.labels)
            loss += strengths.beta * bounded(cross_entropy(z_lost, lose.labels), bound=config.bound)
            distance = rj.features.prototype_loss(h_lost, lose.labels, prototypes)
            loss += strengths.away * bounded(distance, bound=config.prototype_bound)
            loss += strengths.near * rj.features.prototype_loss(h, keep.labels, prototypes)
            if kind == "lora":
                groups = rj.layers.adapter_groups(params, 2)
                alpha = jnp.where(step >= strengths.warm_up * config.steps, strengths.alpha, 0.0)
                loss += alpha * rj.weights.group_lasso(params, groups=groups)
            return loss

        return {"ascent": ascent, "retained": retain}.get(kind, forget)

    def _train(
        self, loss: Any, optimizer: Any, trained: Any, data: Data, key: Any, steps: int, network: Callable[[Any], Any]
    ) -> tuple[Any, jax.Array, jax.Array]:
        """Trains, and measures before the first step and at every point."""
        config = self.config

        def step(carry: Any, each: Any) -> Any:
            (trained, state), (key, number) = carry, each
            updates, state = optimizer.update(jax.grad(loss)(trained, key, number), state, trained)
            return (optax.apply_updates(trained, updates), state), None

        def chunk(carry: Any, each: Any) -> Any:
            carry, _ = jax.lax.scan(step, carry, each)
            return carry, self._point(carry[0], data, network)

        shape = (config.points, steps // config.points)
        each = jax.random.split(key, steps).reshape(shape), jnp.arange(steps).reshape(shape)
        (after, _), points = jax.lax.scan(chunk, (trained, optimizer.init(trained)), each)
        points = jax.tree.map(lambda x, later: jnp.concatenate([x[None], later]), self._point(trained, data, network), points)
        return after, *points

    def _point(self, trained: Any, data: Data, network: Callable[[Any], Any]) -> tuple[jax.Array, jax.Array]:
        """Accuracies on the two classes and the others, and the norms of the groups."""
        labels = data.judged.labels
        hits = jnp.argmax(network(trained)(data.judged.images)[0], axis=-1) == labels
        parts = [*(labels == data.classes[i] for i in range(2)), jnp.all(labels[:, None] != data.classes, axis=-1)]
        accuracies = [jnp.sum(hits & part) / jnp.sum(part) for part in parts]
        is_adapter = lambda x: isinstance(x, rj.layers.AdapterParam)
        norms = jnp.zeros(self.config.depth)
        if all(map(is_adapter, jax.tree.leaves(trained, is_leaf=is_adapter))):
            groups = rj.layers.adapter_groups(trained, 2)
            norms = jnp.stack([rj.weights.group_lasso(trained, groups=[group]) for group in groups])
        return jnp.stack(accuracies), norms

    def _outcome(self, before: Any, after: Any, curve: Any, norms: Any, data: Data, gap: Any) -> Outcome:
        changes = []
        for block in range(self.config.depth):
            pairs = [(before["blocks"][block][name]["kernel"], after["blocks"][block][name]["kernel"]) for name in ("up", "down")]
            changes.append(jnp.sqrt(sum(jnp.sum(jnp.square(new[...] - old[...])) for old, new in pairs)))
        logits = [self.network(after)(part.images)[0] for part in (data.train, data.judged)]
        return Outcome(after, curve, norms, jnp.stack(changes), jnp.asarray(gap, jnp.float32), *logits)


def count(params: Any) -> int:
    """How many numbers the parameters of one seed are."""
    return sum(int(np.prod(leaf.shape[1:])) for leaf in jax.tree.leaves(params))
