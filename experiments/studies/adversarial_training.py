"""The data and the network of the adversarial study, the objectives it compares, and the programs that train and attack."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import regjax as rj
from experiments.studies import common
from experiments.studies.segmentation_training import Conv

CLASSES = 10


class Net(nnx.Module):
    """Two convolutions and two dense layers."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.fine = Conv(1, width, rngs=rngs)
        self.half = Conv(width, 2 * width, 2, rngs=rngs)
        self.hidden = nnx.Linear(32 * width, 8 * width, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
        self.head = nnx.Linear(8 * width, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images ``[B, 8, 8, 1]`` to logits ``[B, 10]``."""
        x = nnx.relu(self.half(nnx.relu(self.fine(x))))
        return self.head(nnx.relu(self.hidden(x.reshape(len(x), -1))))


class Data(NamedTuple):
    """Images ``[N, 8, 8, 1]`` and labels, to train and to test."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def make_data(seed: int, train: int, test: int, planted: float) -> Data:
    """Digits with gray levels in [0, 1], to which a pattern of the class is added: ``planted`` or its negative at each pixel.

    Args:
      seed: of the split and of the patterns.
      train: how many images.
      test: how many.
      planted: the height of the patterns; 0 for plain digits.

    Returns:
      The `Data`.
    """
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    order, patterns = rng.permutation(len(labels)), rng.choice([-planted, planted], (CLASSES, 8, 8, 1))
    seen = (images.reshape(-1, 8, 8, 1) / 16 + patterns[labels]).astype(np.float32)
    first, last = order[:train], order[train : train + test]
    return Data(seen[first], labels[first], seen[last], labels[last])


class Programs:
    """The compiled functions of the study: some epochs of each kind of training, and the attacks.

    Args:
      config: an `AdversarialConfig`; its sizes, rates and strengths are those of the programs.
    """

    def __init__(self, config: Any):
        self.config = config
        self.steps_per_epoch = config.train // config.batch_size
        steps = config.epochs * self.steps_per_epoch
        corners = [round(share * steps) for share in (config.rise, 1 - config.fall)]
        rates = optax.join_schedules(
            [
                optax.linear_schedule(0.0, config.learning_rate, corners[0]),
                optax.constant_schedule(config.learning_rate),
                optax.linear_schedule(config.learning_rate, 0.0, steps - corners[1]),
            ],
            corners,
        )
        self.optimizer = optax.chain(
            optax.add_decayed_weights(config.weight_decay),
            optax.clip_by_global_norm(config.clip),
            optax.sgd(rates, momentum=0.9),
        )
        self.graph = nnx.split(Net(config.width, rngs=nnx.Rngs(0)))[0]
        # Planted patterns lead out of [0, 1]: there is no box.
        self.ball: dict[str, Any] = {"epsilon": config.epsilon, "low": None, "high": None}
        self.adaptive = rj.objectives.elle_lambda(max_weight=config.elle_a_weight, decay=config.elle_a_decay)
        self.measure = jax.jit(self._measure)
        self.evaluate = jax.jit(self._evaluate)
        self._trainers: dict[tuple[tuple[str, Any], ...], Callable[..., Any]] = {}

    def logits(self, params: Any, x: jax.Array) -> jax.Array:
        """Of a batch of images."""
        return nnx.merge(self.graph, params)(x)

    def losses(self, params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        """The cross-entropy of each example."""
        return rj.losses.label_smoothing(self.logits(params, x), labels, alpha=0.0)

    def _mean_loss(self, params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.mean(self.losses(params, x, labels))

    def objective(self, spec: Mapping[str, Any]) -> Callable[..., tuple[jax.Array, jax.Array]]:
        """The loss of a run of which ``spec`` says what `RUNS` does.

        Args:
          spec: ``attack``, and ``method`` if something is added to training on it.

        Returns:
          ``f(params, key, x, labels, weight) -> (loss, error)``: the weight and the error are those of ELLE-A.
        """
        config, attack, method = self.config, spec["attack"], spec.get("method")
        if method in ("elle", "elle_a"):
            loss = rj.objectives.elle(self.losses, method=attack, weight=config.elle_weight, with_info=True, **self.ball)

            def elle(params: Any, key: Any, x: Any, labels: Any, weight: Any) -> Any:
                value, info = loss(params, key, x, labels, weight=weight if method == "elle_a" else None)
                return value, info["error"]

            return elle
        if method == "aaer":
            weights = {"confidence_weight": config.aaer_weights[0], "logit_weight": config.aaer_weights[1]}
            plain = rj.objectives.aaer(self.logits, init="n" if attack == "n_fgsm" else "rs", **weights, **self.ball)
        else:
            pgd = {"step_size": config.epsilon / 4, "num_steps": config.pgd_steps} if attack == "pgd" else {}
            plain = rj.objectives.adversarial(self._mean_loss, attack=attack, **pgd, **self.ball)
        return lambda params, key, x, labels, weight: (plain(params, key, x, labels), jnp.zeros(()))

    def init(self, seed: int) -> Any:
        """Parameters, the state of the optimiser, and that of ELLE-A's weight."""
        params = nnx.split(Net(self.config.width, rngs=nnx.Rngs(seed)))[1]
        return params, self.optimizer.init(params), self.adaptive.init()

    def trainer(self, spec: Mapping[str, Any]) -> Callable[..., Any]:
        """The compiled ``(carry, images, labels, keys) -> carry`` that trains an epoch for each key; shared if it can be."""
        kept = tuple(sorted((name, value) for name, value in spec.items() if name in ("attack", "method")))
        if kept not in self._trainers:
            self._trainers[kept] = jax.jit(functools.partial(self._train, self.objective(spec)))
        return self._trainers[kept]

    def _train(self, objective: Callable[..., Any], carry: Any, images: jax.Array, labels: jax.Array, keys: jax.Array) -> Any:
        size = self.config.batch_size

        def step(carry: Any, xs: Any) -> Any:
            params, state, memory = carry
            rows, key = xs
            values = params, key, images[rows], labels[rows], memory.weight
            grads, error = jax.grad(objective, has_aux=True)(*values)
            updates, state = self.optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state, self.adaptive.apply(memory, error)[1]), None

        def epoch(carry: Any, key: jax.Array) -> Any:
            order_key, step_key = jax.random.split(key)
            order = jax.random.permutation(order_key, len(images))[: self.steps_per_epoch * size].reshape(-1, size)
            return jax.lax.scan(step, carry, (order, jax.random.split(step_key, len(order))))

        return jax.lax.scan(epoch, carry, keys)[0]

    def _measure(self, params: Any, key: jax.Array, x: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        """Accuracies without attack, after FGSM and after PGD-20, and how many examples a single step makes easier."""
        accuracy = lambda x: jnp.mean(jnp.argmax(self.logits(params, x), axis=-1) == labels)
        attacked = (self._mean_loss, params, x, labels)
        pgd = rj.objectives.pgd_attack(*attacked, step_size=self.config.epsilon / 4, num_steps=20, key=key, **self.ball)
        info = rj.objectives.aaer(self.logits, with_info=True, **self.ball)(params, key, x, labels)[1]
        fgsm = rj.objectives.fgsm_attack(*attacked, **self.ball)
        return {"clean": accuracy(x), "fgsm": accuracy(fgsm), "pgd": accuracy(pgd), "abnormal": info["abnormal"]}

    def _evaluate(self, params: Any, key: jax.Array, x: jax.Array, labels: jax.Array) -> jax.Array:
        """The share of examples that withstand PGD-50 from several starts."""
        options = {"num_steps": self.config.final_steps, "num_restarts": self.config.restarts}
        return jnp.mean(rj.objectives.pgd_evaluate(self.logits, params, key, x, labels, **options, **self.ball).correct)


def run(programs: Programs, spec: Mapping[str, Any], data: Data, seed: int) -> dict[str, Any]:
    """Trains one run, of which ``spec`` says what `RUNS` does, on one seed.

    Returns:
      Final measures, ``history`` by measure, ``epochs`` at which it was taken, and ``step_seconds``, the least time of a
      training step.
    """
    config = programs.config
    images, labels, x, y = map(jnp.asarray, data)
    train, carry, points, seconds = programs.trainer(spec), programs.init(seed), [], []
    for epoch in range(0, config.epochs, config.every):
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(epoch + jnp.arange(config.every))
        start = time.perf_counter()
        carry = jax.block_until_ready(train(carry, images, labels, keys))
        seconds.append(time.perf_counter() - start)
        points.append(jax.device_get(programs.measure(carry[0], keys[0], x, y)))
    history = {name: common.rounded([point[name] for point in points], 4) for name in points[0]}
    return {
        **{name: values[-1] for name, values in history.items()},
        "robust": float(programs.evaluate(carry[0], jax.random.key(seed), x, y)),
        "step_seconds": min(seconds) / (config.every * programs.steps_per_epoch),
        "epochs": list(range(config.every, config.epochs + 1, config.every)),
        "history": history,
    }
