"""The training runs of the study of sparsity: every way of the library to a network with few weights, or with few units."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import regjax as rj
from experiments.data import DataConfig, load_arrays

LAYERS = ("first", "second", "last")
EVERY = 10
"""Steps between two refreshings of a mask that grows."""
GROWTH = 100.0
"""How many times the strength of a growing penalty rises, in equal ratios, before the cut."""
ROUNDS = 20
"""Of pruning by synaptic flow."""

Params = Any
Hyper = Mapping[str, Any]


class Data(NamedTuple):
    """What a seed trains on and is judged on: images as rows, labels, and the rows of every batch ``[steps, B]``."""

    images: Any
    labels: Any
    eval_images: Any
    eval_labels: Any
    order: Any


class Start(NamedTuple):
    """Where a seed begins: the network's parameters, and a key for what a method draws."""

    params: Params
    key: Any


class Outcome(NamedTuple):
    """What a run gives.

    Attributes:
      accuracy: of the network in the end.
      pruned: of the network right after it was cut, before it was trained on; not a number where a method has no such moment.
      kept: nonzero weights of each kernel in the end.
      units: hidden units of each layer with a weight to them in the end.
      stopped: the epoch at which the search of ART ended; the last one where it did not; not a number for other methods.
    """

    accuracy: Any
    pruned: Any
    kept: Any
    units: Any
    stopped: Any


class Trained(NamedTuple):
    """Parameters in the end, those right after the cut or None, and where ART stopped."""

    params: Params
    pruned: Params = None
    stopped: Any = float("nan")


def load(config: Any, seeds: Sequence[int]) -> Data:
    """The data of every seed ``[S, ...]``, cut to common sizes; judged on the part that the configuration names."""
    every = []
    for seed in seeds:
        splits = load_arrays(DataConfig(name="digits", batch_size=config.batch_size, seed=seed, validation=config.validation))
        rows = lambda split: np.asarray(split.images, np.float32).reshape(len(split.labels), -1)
        judged = getattr(splits, config.judged_on)
        every.append((rows(splits.train), np.asarray(splits.train.labels), rows(judged), np.asarray(judged.labels)))
    stacked = [np.stack([leaf[: min(map(len, leaves))] for leaf in leaves]) for leaves in zip(*every, strict=True)]
    size = stacked[0].shape[1]
    orders = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        epochs = [rng.permutation(size)[: size - size % config.batch_size] for _ in range(config.epochs)]
        orders.append(np.concatenate(epochs).reshape(-1, config.batch_size))
    return Data(*stacked, np.stack(orders).astype(np.int32))


def initialise(width: int, seeds: Sequence[int]) -> Start:
    """He-normal kernels and biases of 0 for every seed ``[S, ...]``."""

    def one(seed: Any) -> Start:
        *keys, own = jax.random.split(jax.random.key(seed), len(LAYERS) + 1)
        ends = ((64, width), (width, width), (width, 10))
        make = lambda key, shape: {"kernel": jax.nn.initializers.he_normal()(key, shape), "bias": jnp.zeros(shape[1])}
        return Start({name: make(key, shape) for name, key, shape in zip(LAYERS, keys, ends, strict=True)}, own)

    return jax.vmap(one)(jnp.asarray(seeds))


def network(params: Params, x: Any) -> jax.Array:
    """Rows to logits."""
    *hidden, last = LAYERS
    for name in hidden:
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params[last]["kernel"] + params[last]["bias"]


def accuracy(params: Params, images: Any, labels: Any) -> jax.Array:
    """The share of images that a network classifies rightly."""
    return jnp.mean(jnp.argmax(network(params, images), -1) == labels)


def kernels(tree: Params) -> list[Any]:
    """The kernels of a tree, from the first layer."""
    return [tree[name]["kernel"] for name in LAYERS]


def with_kernels(params: Params, found: Sequence[Any]) -> Params:
    """The parameters with other kernels."""
    return {name: {**params[name], "kernel": kernel} for name, kernel in zip(LAYERS, found, strict=True)}


class Course:
    """The common budget of a seed: its steps, its rate, and the moment of a cut.

    Args:
      config: the study's.
      data: of one seed.
      cut: the share of the budget before it.
      learning_rate: in place of the configuration's.
    """

    def __init__(self, config: Any, data: Data, cut: float = 0.5, learning_rate: Any = None):
        self.config, self.data = config, data
        self.learning_rate = config.learning_rate if learning_rate is None else learning_rate
        self.steps = data.order.shape[0]
        self.epoch = self.steps // config.epochs
        self.cut = round(cut * config.epochs) * self.epoch

    def rate(self, step: Any) -> Any:
        """The learning rate at a step of the budget: constant in the first half, then along a cosine to 0."""
        half = self.steps // 2
        return self.learning_rate * optax.cosine_decay_schedule(1.0, self.steps - half)(jnp.maximum(step - half, 0))

    def sgd(self, begin: int = 0, factor: Any = 1.0) -> optax.GradientTransformation:
        """SGD with momentum that begins at a step of the budget."""
        return optax.sgd(lambda step: factor * self.rate(step + begin), momentum=0.9)

    def growing(self, strength: Any) -> Callable[[Any], Any]:
        """A strength that reaches its full size at the cut."""
        return lambda step: strength * GROWTH ** (jnp.minimum(step / self.cut, 1.0) - 1.0)

    def loss(self, params: Params, rows: Any) -> tuple[jax.Array, jax.Array]:
        """The mean cross-entropy of a batch, and its accuracy."""
        logits, labels = network(params, self.data.images[rows]), self.data.labels[rows]
        return jnp.mean(rj.losses.label_smoothing(logits, labels, alpha=0.0)), jnp.mean(jnp.argmax(logits, -1) == labels)

    def fit(self, params: Any, tx: Any, begin: int, end: int, state: Any = None, effective: Any = lambda p: p) -> tuple[Any, Any]:
        """Trains from one step of the budget to another.

        Args:
          params: what is trained.
          tx: the optimiser.
          begin: the first step.
          end: behind the last.
          state: the optimiser's; by default a new one.
          effective: makes the network's parameters of what is trained.

        Returns:
          ``(params, state)``.
        """

        def step(carry: Any, rows: Any) -> Any:
            params, state = carry
            gradient = jax.grad(lambda p: self.loss(effective(p), rows)[0])(params)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = (params, tx.init(params) if state is None else state)
        return jax.lax.scan(step, carry, self.data.order[begin:end])[0]

    def finish(self, params: Params, mask: Any) -> Trained:
        """Cuts a network at the moment of the cut, and trains it on under the mask."""
        pruned = rj.weights.apply_mask(params, mask)
        params, _ = self.fit(pruned, rj.gradients.fixed_mask(self.sgd(self.cut), mask), self.cut, self.steps)
        return Trained(params, pruned)


# Methods: (course, start, level, hyperparameters) -> Trained. A level is the share of weights, or of units, to be removed.


def dense(course: Course, start: Start, level: Any, hyper: Hyper) -> Trained:
    """Nothing is pruned."""
    return Trained(course.fit(start.params, course.sgd(), 0, course.steps)[0])


def gradual(course: Course, start: Start, level: Any, hyper: Hyper, **options: Any) -> Trained:
    """Pruning by the cubic schedule between two shares of the budget."""
    steps = {name: jnp.round(hyper[name] * course.steps).astype(jnp.int32) for name in ("start", "end")}
    seed = jax.random.randint(start.key, (), 0, 2**31 - 1)
    tx = rj.gradients.prune(course.sgd(), sparsity=level, every=EVERY, seed=seed, **steps, **options)
    return Trained(course.fit(start.params, tx, 0, course.steps)[0])


def at_init(course: Course, start: Start, level: Any, hyper: Hyper, **options: Any) -> Trained:
    """Pruning in the first step."""
    tx = rj.gradients.prune(course.sgd(), sparsity=level, **options)
    return Trained(course.fit(start.params, tx, 0, course.steps)[0])


def synaptic_flow(params: Params, level: Any) -> Any:
    """The mask of synaptic flow, in rounds of rising sparsity: ``(1 - level)^(r / R)`` stay after round r of R."""
    apply = lambda p, x: network({name: {**p[name], "bias": jnp.zeros_like(p[name]["bias"])} for name in LAYERS}, x)

    def thin(mask: Any, share: Any) -> Any:
        saliency = rj.weights.synaptic_saliency(apply, rj.weights.apply_mask(params, mask), (1, 64))
        return rj.weights.saliency_mask(saliency, density=(1 - level) ** share), None

    whole = rj.weights.topk_mask(params, sparsity=0.0)
    return jax.lax.scan(thin, whole, jnp.arange(1, ROUNDS + 1) / ROUNDS)[0]


def flow_at_init(course: Course, start: Start, level: Any, hyper: Hyper) -> Trained:
    """Pruning by synaptic flow before training."""
    tx = rj.gradients.fixed_mask(course.sgd(), synaptic_flow(start.params, level))
    return Trained(course.fit(rj.weights.apply_mask(start.params, tx.init(start.params).mask), tx, 0, course.steps)[0])


def shrinkage(course: Course, start: Start, level: Any, hyper: Hyper, **options: Any) -> Trained:
    """Iterative soft shrinkage up to the cut."""
    tx = optax.chain(course.sgd(), rj.gradients.iss_p(level, ratio=hyper["ratio"], shrink_steps=course.cut, **options))
    params, state = course.fit(start.params, tx, 0, course.cut)
    pruned = rj.weights.apply_mask(params, rj.gradients.find_mask(state))
    return Trained(course.fit(params, tx, course.cut, course.steps, state)[0], pruned)


def one_shot(
    course: Course, start: Start, level: Any, hyper: Hyper, before: Any = None, after: Any = None, distribution: str = "global"
) -> Trained:
    """Training to the cut with something before or after the optimiser, then the largest weights, trained on."""
    parts = [part(course, hyper) for part in (before,) if part is not None]
    parts += [course.sgd()]
    parts += [part(course, hyper) for part in (after,) if part is not None]
    params, _ = course.fit(start.params, optax.chain(*parts), 0, course.cut)
    scores = jax.tree.map(jnp.abs, params)
    return course.finish(params, rj.weights.topk_mask(scores, sparsity=level, distribution=distribution))


def lasso(course: Course, hyper: Hyper) -> Any:
    """An l1 penalty whose strength grows."""
    return rj.gradients.add_penalty(rj.weights.l1, course.growing(hyper["strength"]))


def proximal_lasso(course: Course, hyper: Hyper) -> Any:
    """The proximal step of l1."""
    return rj.gradients.proximal_step(rj.weights.prox_l1, course.growing(hyper["strength"]), learning_rate=course.rate)


def hypersparse(course: Course, start: Start, level: Any, hyper: Hyper) -> Trained:
    """HyperSparse with the growing strength of `lasso`, and its strict mask."""
    penalty = functools.partial(rj.weights.hypersparse_penalty, prune_rate=level)
    tx = optax.chain(rj.gradients.add_penalty(penalty, course.growing(hyper["strength"])), course.sgd())
    params, _ = course.fit(start.params, tx, 0, course.cut)
    return course.finish(params, rj.weights.magnitude_mask_strict(params, prune_rate=level))


def irrelevance(course: Course, start: Start, level: Any, hyper: Hyper) -> Trained:
    """Decay of the weights that the loss does not feel up to the cut; at scale 0 plain decay of all."""
    tx = rj.gradients.irrelevance_decay(course.sgd(), hyper["decay"], gradient_scale=hyper["scale"])
    params, _ = course.fit(start.params, tx, 0, course.cut)
    return course.finish(params, rj.weights.global_magnitude_mask(params, sparsity=level))


def adaptive(course: Course, start: Start, level: Any, hyper: Hyper) -> Trained:
    """ART: the penalty grows from epoch to epoch until a pruned copy is as good, which is trained on in what is left.

    The search ends at the cut at the latest, with the best copy that it remembers.
    """
    data, total = course.data, course.config.epochs
    search = rj.weights.art(level, warmup_epochs=round(0.1 * total), init=hyper["init"], growth=hyper["growth"])
    penalty = functools.partial(rj.weights.hypersparse_penalty, prune_rate=level)
    sgd = course.sgd()

    def epoch(carry: Any, rows: Any) -> Any:
        params, state, memory, mask, number = carry
        strength = jnp.where(memory.done, 0.0, search.coefficient(memory))

        def step(carry: Any, rows: Any) -> Any:
            params, state = carry
            (_, right), gradient = jax.value_and_grad(course.loss, has_aux=True)(params, rows)
            push = jax.grad(penalty)(params)
            gradient = jax.tree.map(lambda g, r, m: jnp.where(m, g + strength * r, 0), gradient, push, mask)
            updates, state = sgd.update(gradient, state, params)
            return (rj.weights.apply_mask(optax.apply_updates(params, updates), mask), state), right

        (params, state), right = jax.lax.scan(step, (params, state), rows)
        copy, _ = search.prune(params)
        later = search.update(memory, params, jnp.mean(right), accuracy(copy, data.images, data.labels))
        number = number + 1
        over = ~memory.done & (later.done | (number * course.epoch == course.cut))
        later = later._replace(done=later.done | over)
        choose = lambda old, new: jax.tree.map(lambda a, b: jnp.where(over, b, a), old, new)
        params, mask = choose(params, later.best), choose(mask, later.best_mask)
        # The cut network starts without momentum, as those of the other methods.
        state = jax.tree.map(lambda leaf: jnp.where(over, jnp.zeros_like(leaf), leaf) if leaf.ndim else leaf, state)
        return (params, state, later, mask, number), (over, params)

    mask = jax.tree.map(lambda p: jnp.ones_like(p, bool), start.params)
    rows = data.order.reshape(total, course.epoch, -1)
    carry = (start.params, sgd.init(start.params), search.init(start.params), mask, jnp.zeros((), jnp.int32))
    (params, *_), (over, every) = jax.lax.scan(epoch, carry, rows)
    when = jnp.argmax(over)
    return Trained(params, jax.tree.map(lambda leaf: leaf[when], every), when + 1.0)


def pattern(course: Course, start: Start, level: Any, hyper: Hyper, n: int, m: int) -> Trained:
    """Of every m inputs the n largest stay, from the cut on."""
    params, _ = course.fit(start.params, course.sgd(), 0, course.cut)
    tx = rj.gradients.nm_pruning(course.sgd(), n=n, m=m)
    _, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    return course.finish(params, rj.gradients.find_mask(state))


def straight_through(course: Course, start: Start, level: Any, hyper: Hyper, n: int, m: int) -> Trained:
    """SR-STE: the pattern in the forward pass all along, dense weights behind it."""
    effective = lambda p: with_kernels(p, [rj.weights.sr_ste(w, n=n, m=m, decay=hyper["decay"]) for w in kernels(p)])
    return Trained(effective(course.fit(start.params, course.sgd(), 0, course.steps, effective=effective)[0]))


def top_scores(course: Course, start: Start, level: Any, hyper: Hyper) -> Trained:
    """A supermask by the largest scores over frozen weights of one size, no biases."""
    keys = jax.random.split(start.key, 2 * len(LAYERS))
    # Larger by the root of what is masked: sums over few weights keep their size.
    shapes = [w.shape for w in kernels(start.params)]
    frozen = [rj.weights.signed_constant_init(k, s) / jnp.sqrt(1 - level) for k, s in zip(keys[:3], shapes, strict=True)]
    scores = [rj.weights.supermask_init(key, shape) for key, shape in zip(keys[3:], shapes, strict=True)]
    masked = lambda s: [w * rj.weights.topk_supermask(x, density=1 - level) for w, x in zip(frozen, s, strict=True)]
    effective = lambda s: with_kernels(start.params, masked(s))
    tx = course.sgd(factor=hyper["factor"])
    return Trained(effective(course.fit(scores, tx, 0, course.steps, effective=effective)[0]))


def signs(course: Course, start: Start, level: Any, hyper: Hyper) -> Trained:
    """A sign supermask: a mask of synaptic flow, in which the signs of frozen weights are learned; no biases."""
    mask = synaptic_flow(start.params, level)
    frozen = with_kernels(start.params, [w / jnp.sqrt(1 - level) for w in kernels(start.params)])
    ones = with_kernels(start.params, [jnp.ones_like(w) for w in kernels(start.params)])
    effective = lambda s: rj.weights.sign_supermask(s, frozen, mask)
    tx = course.sgd(factor=hyper["factor"])
    return Trained(effective(course.fit(ones, tx, 0, course.steps, effective=effective)[0]))


def soft_subnetwork(course: Course, start: Start, level: Any, hyper: Hyper) -> Trained:
    """Weights and scores trained together, with the hard mask of the largest scores of each layer."""
    keys = jax.random.split(start.key, len(LAYERS))
    scores = [rj.weights.supermask_init(key, w.shape) for key, w in zip(keys, kernels(start.params), strict=True)]

    def effective(both: Any) -> Params:
        params, scores = both
        masks = [rj.weights.soft_subnetwork_mask(s, sparsity=level) for s in scores]
        return with_kernels(params, [w * m for w, m in zip(kernels(params), masks, strict=True)])

    tx = optax.partition({"weights": course.sgd(), "scores": course.sgd(factor=hyper["factor"])}, ("weights", "scores"))
    return Trained(effective(course.fit((start.params, scores), tx, 0, course.steps, effective=effective)[0]))


# Removal of hidden units: a level is the share of each hidden layer.

HIDDEN = LAYERS[:-1]


def hidden_only(path: Any, leaf: Any) -> bool:
    """Chooses the kernels of hidden layers."""
    return leaf.ndim == 2 and leaf.shape[1] != 10


def norms(params: Params, name: str) -> jax.Array:
    """The norms of the weights to each unit of a layer."""
    return jnp.linalg.norm(params[name]["kernel"], axis=0)


def structures(removed: Sequence[Any]) -> list[rj.weights.Structure]:
    """Where the network holds the units of each hidden layer."""
    found = []
    for name, after, remove in zip(HIDDEN, LAYERS[1:], removed, strict=True):
        found.append(rj.weights.Structure(remove, {f"{name}/kernel": 1, f"{name}/bias": 0, f"{after}/kernel": 0}))
    return found


def unit_mask(params: Params, removed: Sequence[Any]) -> Any:
    """The mask of the weights that stay when units go: what `regjax.weights.remove_structures` leaves."""
    first, second = (~remove for remove in removed)
    whole = jnp.ones(10, bool)
    ends = ((jnp.ones(64, bool), first), (first, second), (second, whole))
    return {name: {"kernel": a[:, None] & b[None], "bias": b} for name, (a, b) in zip(LAYERS, ends, strict=True)}


def smallest(params: Params, level: Any) -> list[Any]:
    """The units of the smallest norms."""
    return [rj.weights.choose_structures(norms(params, name), norms(params, name).size, ratio=level) for name in HIDDEN]


def at_random(key: Any, params: Params, level: Any) -> list[Any]:
    """Any units."""
    sizes = [norms(params, name).size for name in HIDDEN]
    return [rj.weights.choose_structures(k, n, ratio=level) for k, n in zip(jax.random.split(key), sizes, strict=True)]


def small(course: Course, start: Start, level: Any, hyper: Hyper) -> Trained:
    """A small network from the start."""
    mask = unit_mask(start.params, at_random(start.key, start.params, level))
    width = norms(start.params, HIDDEN[0]).size
    kept = jnp.maximum(jnp.round(width * (1 - level)), 1) / width
    # He-normal for the smaller fan-in of the later layers.
    first, *later = kernels(start.params)
    params = with_kernels(start.params, [first, *(w / jnp.sqrt(kept) for w in later)])
    tx = rj.gradients.fixed_mask(course.sgd(), mask)
    return Trained(course.fit(rj.weights.apply_mask(params, mask), tx, 0, course.steps)[0])


def units_one_shot(course: Course, start: Start, level: Any, hyper: Hyper) -> Trained:
    """Removes the units of the smallest norms at the cut."""
    params, _ = course.fit(start.params, course.sgd(), 0, course.cut)
    return course.finish(params, unit_mask(params, smallest(params, level)))


def units_proximal(course: Course, start: Start, level: Any, hyper: Hyper, *, envelope: bool) -> Trained:
    """Proximal steps of the group sparse envelope, or of the group lasso, then the projection to the largest groups."""
    width = norms(start.params, HIDDEN[0]).size
    kept = jnp.maximum(jnp.round(width * (1 - level)), 1)
    prox = functools.partial(rj.weights.prox_wgsef, k=kept) if envelope else rj.weights.prox_group_lasso
    prox = functools.partial(prox, where=hidden_only)
    step = rj.gradients.proximal_step(prox, course.growing(hyper["strength"]), learning_rate=course.rate)
    params, _ = course.fit(start.params, optax.chain(course.sgd(), step), 0, course.cut)
    projected = rj.weights.project_top_groups(params, k=kept.astype(jnp.int32), where=hidden_only)
    return course.finish(params, unit_mask(params, [norms(projected, name) == 0 for name in HIDDEN]))


def units_regularised(course: Course, start: Start, level: Any, hyper: Hyper, *, chosen: str) -> Trained:
    """DReSS: half of the time to the cut is plain; then units are chosen, and their weights driven to 0 until the cut."""
    half = course.cut // 2
    params, _ = course.fit(start.params, course.sgd(), 0, half)
    removed = at_random(start.key, params, level) if chosen == "random" else smallest(params, level)
    penalty = functools.partial(rj.weights.structured_removal_penalty, spec=structures(removed))
    tx = optax.chain(rj.gradients.add_penalty(penalty, hyper["strength"]), course.sgd(half))
    params, _ = course.fit(params, tx, half, course.cut)
    return course.finish(params, unit_mask(params, removed))


class Programs:
    """Compiled programs, one for each method, over levels and seeds.

    Args:
      config: a `SparsityConfig`.
      seeds: of data, initialisation and order of examples.
    """

    def __init__(self, config: Any, seeds: Sequence[int]):
        self.config = config
        self.data, self.starts = load(config, seeds), initialise(config.width, seeds)
        self._made: dict[Any, Any] = {}

    def run(self, method: Callable[..., Trained], levels: Sequence[float], hyper: Mapping[str, float]) -> Outcome:
        """Trains every seed at every level.

        Args:
          method: one of this module's, or a part of one.
          levels: the shares to be removed.
          hyper: hyperparameters, numbers; among them may be ``cut``, the share of the budget before it, which compiles the
            program again, and ``learning_rate`` in place of the configuration's.

        Returns:
          An `Outcome` of NumPy arrays ``[L, S]``, of which ``kept`` and ``units`` have an axis of layers.
        """
        hyper = {name: float(value) for name, value in hyper.items()}
        cut = hyper.pop("cut", 0.5)
        options = tuple(sorted(getattr(method, "keywords", {}).items()))
        program = getattr(method, "func", method), options, cut
        if program not in self._made:
            self._made[program] = self._compiled(method, cut)
        values = {name: jnp.float32(value) for name, value in hyper.items()}
        found = self._made[program](jnp.asarray(levels, jnp.float32), self.data, self.starts, values)
        return jax.tree.map(np.asarray, jax.device_get(found))

    def _compiled(self, method: Callable[..., Trained], cut: float) -> Any:
        def one(level: Any, data: Data, start: Start, hyper: Hyper) -> Outcome:
            trained = method(Course(self.config, data, cut, hyper.get("learning_rate")), start, level, hyper)
            judge = lambda params: accuracy(params, data.eval_images, data.eval_labels)
            count = lambda w, axis=None: jnp.sum(w, axis=axis, dtype=jnp.int32)
            return Outcome(
                judge(trained.params),
                jnp.full((), jnp.nan) if trained.pruned is None else judge(trained.pruned),
                jnp.stack([count(w != 0) for w in kernels(trained.params)]),
                jnp.stack([count(norms(trained.params, name) > 0) for name in HIDDEN]),
                jnp.asarray(trained.stopped, jnp.float32),
            )

        over_seeds = jax.vmap(one, in_axes=(None, 0, 0, None))
        return jax.jit(jax.vmap(over_seeds, in_axes=(0, None, None, None)))
