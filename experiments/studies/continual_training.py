"""The training of the continual study: digits in tasks of two classes, a head on frozen features, and what it remembers."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import regjax as rj
from experiments.data import DataConfig, load_arrays

PER_TASK = 2
"""Classes of a task."""
CLASSES = 10
"""Of the digits."""
TASKS = CLASSES // PER_TASK

Params = list[dict[str, Any]]
Values = Mapping[str, Any]


class Data(NamedTuple):
    """One seed's data, or that of all seeds along a leading axis: T tasks of N images, and M images to judge by.

    Attributes:
      inputs: features ``[T, N, D]``.
      labels: ``[T, N]``; class ids are renamed so that task t holds the classes 2t and 2t + 1.
      judged: features ``[M, D]``, of all classes.
      judged_labels: ``[M]``, renamed alike.
    """

    inputs: Any
    labels: Any
    judged: Any
    judged_labels: Any


class Task(NamedTuple):
    """What a memory may see of a finished task: its data ``[N, ...]`` and the strength that its training had."""

    inputs: Any
    labels: Any
    strength: Any


class Run(NamedTuple):
    """What comes of a run over all tasks.

    Attributes:
      predicted: the class of every judged image after each task ``[T, M]``.
      objective: what each task minimised, at its end: the summed loss and the penalty ``[T]``.
      slope: the norm of its gradient there ``[T]``.
      weights: the parameters after each task, as a vector ``[T, P]``.
    """

    predicted: Any
    objective: Any
    slope: Any
    weights: Any


class Memory(NamedTuple):
    """A technique: the state it starts with, its penalty, and what it takes from a training step and from a finished task.

    Attributes:
      init: ``(key, params, values) -> state``.
      penalty: ``(params, state, weight) -> scalar``.
      update: ``(key, state, params, task, values) -> state``.
      step: ``(state, gradients, updates) -> state``, the gradients of the task's summed loss; None where steps do not matter.
    """

    init: Callable[..., Any]
    penalty: Callable[..., Any]
    update: Callable[..., Any]
    step: Callable[..., Any] | None = None


def load(config: Any, seeds: Sequence[int], judged_on: str) -> Data:
    """The data of every seed ``[S, ...]``: its own training images and order of classes.

    The features are frozen: the first principal components of all training images, without labels, each scaled to variance 1,
    under tanh.

    Args:
      config: a `ContinualConfig`.
      seeds: of the splits and orders.
      judged_on: ``test``, the same images for every seed, or ``validation``.

    Returns:
      The data.
    """
    every = []
    for seed in seeds:
        split = load_arrays(DataConfig(name="digits", validation=0.25, per_class=config.per_class, seed=seed))
        flat = lambda part: (np.asarray(part.images, np.float64).reshape(len(part), -1), np.asarray(part.labels))
        (x, y), (judged, judged_y) = flat(split.train), flat(getattr(split, judged_on))
        mean = x.mean(0)
        _, spread, axes = np.linalg.svd(x - mean, full_matrices=False)
        axes = axes[: config.features].T / (spread[: config.features] / np.sqrt(len(x)))
        features = lambda x, mean=mean, axes=axes: np.tanh((x - mean) @ axes).astype(np.float32)
        rank = np.random.default_rng(seed).permutation(CLASSES)  # class k is the rank[k]-th to come
        labels = rank[y]
        rows = np.argsort(labels // PER_TASK, kind="stable").reshape(TASKS, -1)
        every.append(Data(features(x)[rows], labels[rows].astype(np.int32), features(judged), rank[judged_y].astype(np.int32)))
    stack = lambda *leaves: np.stack([leaf[: min(map(len, leaves))] for leaf in leaves])
    return jax.tree.map(stack, *every)


def initialise(key: Any, sizes: Sequence[int]) -> Params:
    """The layers of a head: hidden ones at random, the last one 0."""
    layers = []
    for i, (before, after) in enumerate(itertools.pairwise(sizes)):
        last = i == len(sizes) - 2
        draw = jax.random.normal(jax.random.fold_in(key, i), (before, after)) / np.sqrt(before)
        layers.append({"kernel": jnp.zeros((before, after)) if last else draw, "bias": jnp.zeros(after)})
    return layers


def logits(params: Params, x: Any) -> Any:
    """Of all classes, with tanh between the layers."""
    for i, layer in enumerate(params):
        x = (jnp.tanh(x) if i else x) @ layer["kernel"] + layer["bias"]
    return x


def nll_sum(params: Params, batch: Any) -> Any:
    """The negative log-likelihood summed over a batch (inputs, labels)."""
    x, y = batch
    return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y))


def squared_error(params: Params, batch: Any) -> Any:
    """Half the squared distance to the one-hot labels, summed over a batch: linear regression where the head is linear."""
    x, y = batch
    return jnp.sum(jnp.square(logits(params, x) - jax.nn.one_hot(y, CLASSES))) / 2


def memories(
    loss: Callable[..., Any] = nll_sum, *, psd: bool = False, steps: int = 1000, hidden: Sequence[int] = (256, 256)
) -> dict[str, Memory]:
    """The techniques.

    Args:
      loss: of a batch, summed.
      psd: whether AQC drops the negative eigenvalues of a task's Hessian.
      steps: with which neural consolidation learns a task.
      hidden: widths of its network.

    Returns:
      Them by name. Each takes ``precision``; ``si`` also ``xi`` and ``neural`` also ``radius``.
    """
    w = rj.weights

    def ewc_update(reduction: Any) -> Any:
        def update(key: Any, state: Any, params: Params, task: Task, values: Values) -> Any:
            return w.ewc_update(state, params, logits, (task.inputs[None], task.labels[None]), reduction=reduction)

        return update

    def aqc_update(key: Any, state: Any, params: Params, task: Task, values: Values) -> Any:
        return w.aqc_update(state, params, loss, (task.inputs[None], task.labels[None]), psd=psd)

    def diagonal_update(key: Any, state: Any, params: Params, task: Task, values: Values) -> Any:
        """EWC of any loss: the diagonal of the Hessian, which is the Fisher information of linear regression."""
        start = w.aqc_init(params, precision=0.0)
        hessian = w.aqc_update(start, params, loss, (task.inputs[None], task.labels[None])).hessian
        diagonal = ravel_pytree(params)[1](jnp.diagonal(hessian))
        return w.EWCState(params, jax.tree.map(jnp.add, state.fisher, diagonal))

    def objective(params: Params, state: Any, task: Task) -> Any:
        return loss(params, (task.inputs, task.labels)) + w.neural_consolidation(params, state, weight=task.strength)

    def neural_update(key: Any, state: Any, params: Params, task: Task, values: Values) -> Any:
        return w.neural_consolidation_update(key, state, params, objective, state, task, radius=values["radius"], steps=steps)

    ewc_init = lambda key, params, values: w.ewc_init(params, precision=values["precision"])
    ewc = lambda params, state, weight: w.ewc(params, state, weight=weight)
    return {
        "none": Memory(
            lambda key, params, values: None,
            lambda params, state, weight: weight / 2 * sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params)),
            lambda key, state, params, task, values: None,
        ),
        "l2_sp": Memory(
            lambda key, params, values: jax.tree.map(jnp.zeros_like, params),
            lambda params, state, weight: w.l2_sp(params, state, alpha=weight),
            lambda key, state, params, task, values: params,
        ),
        "aqc": Memory(
            lambda key, params, values: w.aqc_init(params, precision=values["precision"]),
            lambda params, state, weight: w.quadratic_consolidation(params, state, weight=weight),
            aqc_update,
        ),
        "ewc_sum": Memory(ewc_init, ewc, ewc_update("sum")),
        "ewc_mean": Memory(ewc_init, ewc, ewc_update("mean")),
        "diagonal": Memory(ewc_init, ewc, diagonal_update),
        "si": Memory(
            lambda key, params, values: w.si_init(params, precision=values["precision"]),
            lambda params, state, weight: w.si(params, state, weight=weight),
            lambda key, state, params, task, values: w.si_update(state, params, xi=values["xi"], nonnegative=True),
            w.si_step,
        ),
        "neural": Memory(
            lambda key, params, values: w.neural_consolidation_init(key, params, hidden=hidden, precision=values["precision"]),
            lambda params, state, weight: w.neural_consolidation(params, state, weight=weight),
            neural_update,
        ),
    }


def numbers(memory: Memory, sizes: Sequence[int]) -> int:
    """How many numbers a memory's state holds."""
    values = {"precision": jnp.ones(())}
    make = lambda key: memory.init(key, initialise(key, sizes), values)
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(jax.eval_shape(make, jax.random.key(0))))


class Solver(NamedTuple):
    """How a task's objective is minimised.

    Attributes:
      name: ``adam`` in minibatches under a one-cycle rate; ``lbfgs`` or ``newton`` on all images of the task.
      steps: of a task.
      learning_rate: the peak of Adam's.
      batch_size: Adam's.
    """

    name: str
    steps: int
    learning_rate: float = 0.0
    batch_size: int = 0


def learn(
    memory: Memory,
    solver: Solver,
    sizes: Sequence[int],
    data: Data,
    key: Any,
    values: Values,
    *,
    joint: bool = False,
    loss: Callable[..., Any] = nll_sum,
) -> Run:
    """One task after the other; pure, for jit and vmap over data, key and values.

    A task's objective is its summed loss plus the penalty times ``strength``; of the first task, with every technique, the
    penalty is half the squared norm of the parameters (a prior of precision 1), so that all start alike.

    Args:
      memory: the technique.
      solver: of each task's objective.
      sizes: of the head's layers.
      data: of one seed.
      key: of the initialisation, the batches and the memory.
      values: ``strength``, ``precision`` and what else the memory takes; ``rate`` multiplies Adam's rate after the first task.
      joint: train on the images of all tasks so far, with the prior alone: what sequential training would like to reach.
      loss: of a batch, summed.

    Returns:
      The `Run`.
    """
    params = initialise(jax.random.fold_in(key, 0), sizes)
    state = memory.init(jax.random.fold_in(key, 1), params, values)
    per_task = data.labels.shape[1]
    pool = jax.tree.map(lambda x: jnp.reshape(x, (-1, *x.shape[2:])), (data.inputs, data.labels))

    def one(carry: Any, number: Any) -> Any:
        params, state = carry
        train_key, update_key = jax.random.split(jax.random.fold_in(key, 2 + number))
        first, end = jnp.where(joint, 0, number * per_task), (number + 1) * per_task
        strength = jnp.where(joint | (number == 0), 1.0 if joint else 1 / values["precision"], values["strength"])
        rows = jnp.arange(len(pool[1]))
        present = (rows >= first) & (rows < end)

        def whole(params: Params) -> Any:
            if joint:  # images of later tasks count 0: their number must not depend on the task
                each = jax.vmap(lambda x, y: loss(params, (x[None], y[None])))(*pool)
                return jnp.sum(jnp.where(present, each, 0)) + memory.penalty(params, state, strength)
            task = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, per_task), pool)
            return loss(params, task) + memory.penalty(params, state, strength)

        if solver.name == "adam":
            optimizer = optax.adam(optax.cosine_onecycle_schedule(solver.steps, solver.learning_rate))
            count = end - first
            rate = jnp.where(number == 0, 1.0, values.get("rate", 1.0))

            def step(carry: Any, key: Any) -> Any:
                params, state, moments = carry
                chosen = jax.random.randint(key, (solver.batch_size,), first, end)
                batch = jax.tree.map(lambda x: x[chosen], pool)
                scale = count / solver.batch_size
                gradients = jax.grad(lambda p: scale * loss(p, batch))(params)
                pull = jax.grad(memory.penalty)(params, state, strength)
                updates, moments = optimizer.update(jax.tree.map(jnp.add, gradients, pull), moments)
                updates = jax.tree.map(lambda x: rate * x, updates)
                state = memory.step(state, gradients, updates) if memory.step else state
                return (optax.apply_updates(params, updates), state, moments), None

            start = params, state, optimizer.init(params)
            (params, state, _), _ = jax.lax.scan(step, start, jax.random.split(train_key, solver.steps))
        else:
            params = {"lbfgs": lbfgs, "newton": newton}[solver.name](whole, params, solver.steps)
        objective, slope = jax.value_and_grad(whole)(params)
        vector = ravel_pytree(params)[0]
        found = Run(jnp.argmax(logits(params, data.judged), axis=-1), objective, optax.tree.norm(slope), vector)
        task = Task(data.inputs[number], data.labels[number], strength)
        # Nothing asks what the last task leaves.
        update = lambda state: memory.update(update_key, state, params, task, values)
        return (params, jax.lax.cond(number < TASKS - 1, update, lambda state: state, state)), found

    return jax.lax.scan(one, (params, state), jnp.arange(TASKS))[1]


def lbfgs(objective: Callable[..., Any], params: Params, steps: int) -> Params:
    """The minimum by optax's L-BFGS."""
    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        value, gradients = value_and_grad(params, state=state)
        updates, state = optimizer.update(gradients, state, params, value=value, grad=gradients, value_fn=objective)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)[0][0]


def newton(objective: Callable[..., Any], params: Params, steps: int) -> Params:
    """The minimum of a convex objective by Newton's method: of each direction the best of halved lengths, or none."""
    theta, rebuild = ravel_pytree(params)
    value = lambda theta: objective(rebuild(theta))
    lengths = jnp.concatenate([jnp.zeros(1), 0.5 ** jnp.arange(12)])

    def step(theta: Any, _: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            direction = jnp.linalg.solve(jax.hessian(value)(theta), jax.grad(value)(theta))
        tried = theta - lengths[:, None] * direction
        found = jax.vmap(value)(tried)
        return tried[jnp.argmin(jnp.where(jnp.isfinite(found), found, jnp.inf))], None

    return rebuild(jax.lax.scan(step, theta, None, length=steps)[0])


def over_seeds(run: Callable[..., Run]) -> Callable[..., Run]:
    """Compiles ``run(data, key, values)`` for all seeds ``[S]`` and points ``[P]``: ``[S, P, ...]``."""
    points = jax.vmap(run, in_axes=(None, None, 0))
    return jax.jit(jax.vmap(points, in_axes=(0, 0, None)))


def train(
    memory: Memory,
    solver: Solver,
    sizes: Sequence[int],
    data: Data,
    seeds: Sequence[int],
    points: Sequence[Values],
    **options: Any,
) -> Run:
    """Every seed at every point, as one compiled program.

    Args:
      memory: the technique.
      solver: of each task's objective.
      sizes: of the head's layers.
      data: of the seeds ``[S, ...]``.
      seeds: S of them.
      points: P mappings of the same names to numbers.
      **options: of `learn`.

    Returns:
      The `Run` with axes ``[S, P, ...]``, in NumPy.
    """
    stacked = {name: jnp.array([point[name] for point in points], jnp.float32) for name in points[0]}
    keys = jax.vmap(jax.random.key)(jnp.array(seeds))
    run = functools.partial(learn, memory, solver, tuple(sizes), **options)
    return jax.device_get(over_seeds(run)(data, keys, stacked))


def recalls(predicted: Any, labels: Any) -> np.ndarray:
    """The share of right predictions of each class: of ``[S, T, M]`` and ``[S, M]``, ``[S, T, K]``."""
    of_class = np.asarray(labels)[:, :, None] == np.arange(CLASSES)
    hits = (np.asarray(predicted) == np.asarray(labels)[:, None]).astype(np.float64)
    return np.einsum("stm,smk->stk", hits, of_class) / of_class.sum(1)[:, None]


def by_task(recall: np.ndarray) -> np.ndarray:
    """The mean recall of each task's classes after each task ``[S, T, T]``."""
    return recall.reshape(*recall.shape[:2], TASKS, PER_TASK).mean(-1)
