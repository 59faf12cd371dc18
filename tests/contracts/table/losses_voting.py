"""Examples of `regjax.losses`: votes of teachers, several exits, hidden states, and pools of soft labels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal, probabilities
from tests.contracts.table.losses import EXTREME, PROBABILITIES, logit_errors, refusals

vote, distill = rj.losses.vote_teachers, rj.losses.self_distillation
multi_exit, hidden = rj.losses.multi_exit_loss, rj.losses.hidden_distillation
matching, prune = rj.losses.batchnorm_matching, rj.losses.prune_soft_labels
X, Y, P = jnp.ones((4, 3)), jnp.zeros(4, int), jnp.full((2, 4, 3), 0.3)
KEY = jax.random.key(0)
MEMBERS = np.random.default_rng(3).random((8, 3)) < 0.6
WHERE = np.array([True, False, True, True, True, False, True, True])
# The suite has the batch in front.
teachers = lambda probs: jnp.swapaxes(probs, 0, 1)
MEAN, VARIANCE = (fn(normal(8, 2, 3)[WHERE], axis=(0, 1)) for fn in (np.mean, np.var))


def cross_entropy(logits, labels):
    return rj.losses.maxsup(logits, labels, weight=0.0)


EXAMPLES = (
    Example(
        name="losses.vote_teachers",
        call=lambda key, probs, members: (
            vote(teachers(probs), where=members.T) + 0.5 * vote(teachers(probs), mode="majority") + vote(teachers(probs))
        ),
        arrays={"probs": probabilities(8, 3, 5), "members": MEMBERS},
        rows=("probs", "members"),
        result="rows",
        frozen=("probs",),
        singular=({"probs": np.zeros((8, 3, 5))}, {"members": np.zeros((8, 3), bool)}),
        bad={
            "probs: integers": lambda: vote(jnp.ones((2, 4, 3), int)),
            "probs: no teacher": lambda: vote(jnp.ones((0, 4, 3))),
            "probs: rank": lambda: vote(jnp.ones(3)),
            "mode: misspelt": lambda: vote(P, mode="majorty"),
            "axis: out of range": lambda: vote(P, axis=2),
            "where: of examples": lambda: vote(P, where=jnp.ones(4, bool)),
            "where: weights": lambda: vote(P, where=jnp.ones(2)),
        },
    ),
    Example(
        name="losses.self_distillation",
        call=lambda key, logits, labels, teacher: distill(logits, labels, teacher, weight=0.7, temperature=2.0),
        arrays={"logits": normal(8, 5), "labels": ids(8, classes=5), "teacher": probabilities(8, 5)},
        rows=("logits", "labels", "teacher"),
        result="rows",
        wrt=("logits",),
        frozen=("teacher",),
        identity=lambda key, logits, labels, teacher: (
            distill(logits, labels, teacher, weight=0.0, temperature=2.0),
            cross_entropy(logits, labels),
        ),
        singular=(
            *EXTREME,
            {"labels": PROBABILITIES},
            {"teacher": np.zeros((8, 5))},
            {"teacher": np.eye(5)[np.arange(8) % 5], "logits": 1e4 * np.sign(normal(8, 5))},
        ),
        bad={
            **logit_errors(lambda z, **options: distill(z, jnp.zeros(z.shape[:1], int), jnp.ones(z.shape), **options)),
            **refusals(functools.partial(distill, X, Y, X), "weight", negative=-0.1),
            **refusals(functools.partial(distill, X, Y, X), "temperature", zero=0.0, negative=-1.0),
            "weight: a schedule": lambda: distill(X, Y, X, weight=lambda step: 0.1),
            "labels: rank": lambda: distill(X, jnp.zeros((4, 1), int), X),
            "teacher_probs: shape": lambda: distill(X, Y, jnp.ones((4, 2))),
            "teacher_probs: integers": lambda: distill(X, Y, jnp.ones((4, 3), int)),
        },
    ),
    Example(
        name="losses.multi_exit_loss",
        call=lambda key, losses, weights: (
            multi_exit(losses.T, (1, 2, 4), total_depth=5) + multi_exit(losses.T, (1, 2, 4), weights=weights)
        ),
        arrays={"losses": np.abs(normal(8, 3)), "weights": np.array([0.2, 0.0, 1.5])},
        rows=("losses",),
        result="rows",
        wrt=("losses",),
        identity=lambda key, losses, weights: (
            multi_exit(losses.T, (1, 2, 4), weights=jnp.array([0.0, 0.0, 1.0])),
            losses[:, 2],
        ),
        singular=({"losses": np.zeros((8, 3))}, {"weights": np.zeros(3)}),
        bad={
            "exit_losses: integers": lambda: multi_exit(jnp.ones(2, int), (1, 2)),
            "exit_losses: a number": lambda: multi_exit(jnp.array(1.0), (1,)),
            "exit_losses: none": lambda: multi_exit(jnp.ones(0), np.ones(0, int)),
            "exit_depths: length": lambda: multi_exit(jnp.ones(2), (1, 2, 3)),
            "exit_depths: floats": lambda: multi_exit(jnp.ones(2), (1.0, 2.0)),
            "exit_depths: zero": lambda: multi_exit(jnp.ones(2), (0, 2)),
            "total_depth: below an exit": lambda: multi_exit(jnp.ones(2), (1, 2), total_depth=1),
            "total_depth: a float": lambda: multi_exit(jnp.ones(2), (1, 2), total_depth=2.0),
            "weights: misspelt": lambda: multi_exit(jnp.ones(2), (1, 2), weights="depht"),
            "weights: length": lambda: multi_exit(jnp.ones(2), (1, 2), weights=jnp.ones(3)),
            "weights: None": lambda: multi_exit(jnp.ones(2), (1, 2), weights=None),
        },
    ),
    Example(
        name="losses.hidden_distillation",
        call=lambda key, student, teacher: hidden(student, teacher),
        arrays={"student": normal(8, 2, 3), "teacher": normal(8, 2, 3, seed=1)},
        rows=("student", "teacher"),
        result="rows",
        wrt=("student",),
        frozen=("teacher",),
        singular=({"student": np.zeros((8, 2, 3)), "teacher": np.zeros((8, 2, 3))}, {"student": 1e4 * normal(8, 2, 3)}),
        bad={
            "student_hidden: integers": lambda: hidden(jnp.ones((4, 3), int), X),
            "student_hidden: a number": lambda: hidden(1.0, 1.0),
            "teacher_hidden: shape": lambda: hidden(X, jnp.ones((4, 2))),
            "teacher_hidden: integers": lambda: hidden(X, jnp.ones((4, 3), int)),
            "axis: out of range": lambda: hidden(X, X, axis=2),
        },
    ),
    Example(
        name="losses.batchnorm_matching",
        call=lambda key, activations, mean, variance, where: matching(activations, mean, variance, where=where),
        mapped=lambda axis_name, key, activations, mean, variance, where: matching(
            activations, mean, variance, where=where, axis_name=axis_name
        ),
        arrays={
            "activations": normal(8, 2, 3),
            "mean": normal(3, seed=1),
            "variance": np.array([0.5, 1.0, 2.0]),
            "where": WHERE,
        },
        rows=("activations", "where"),
        result="scalar",
        wrt=("activations",),
        frozen=("mean", "variance"),
        singular=(
            {"where": np.zeros(8, bool)},
            {"where": np.arange(8) == 3},
            {"activations": np.zeros((8, 2, 3)), "mean": np.zeros(3), "variance": np.zeros(3)},
            {"mean": MEAN, "variance": VARIANCE},
            {"activations": 1e4 * np.ones((8, 2, 3))},
        ),
        bad={
            "activations: integers": lambda: matching(jnp.ones((4, 3), int), X[0], X[0]),
            "activations: rank": lambda: matching(X[0], X[0], X[0]),
            "activations: no channels": lambda: matching(jnp.ones((4, 0)), jnp.ones(0), jnp.ones(0)),
            "mean: channels": lambda: matching(X, jnp.ones(2), X[0]),
            "variance: rank": lambda: matching(X, X[0], X),
            "variance: integers": lambda: matching(X, X[0], jnp.ones(3, int)),
            "where: shape": lambda: matching(X, X[0], X[0], where=jnp.ones(3, bool)),
            "where: weights": lambda: matching(X, X[0], X[0], where=jnp.ones(4)),
            "axis_name: a number": lambda: matching(X, X[0], X[0], axis_name=0),
        },
    ),
    Example(
        name="losses.prune_soft_labels",
        call=lambda key, ratio, step: prune(1000, ratio, step, key),
        arrays={"ratio": np.array(0.5), "step": np.array(3, np.int32)},
        result="other",
        random=True,
        identity=lambda key, ratio, step: (
            prune(1000, 0.0, step, key),
            jax.random.randint(jax.random.fold_in(key, step), (), 0, 1000, jnp.int32),
        ),
        singular=({"ratio": np.array(1.0)}, {"step": np.array(0, np.int32)}),
        bad={
            **refusals(lambda ratio: prune(10, ratio, 0, KEY), "ratio", negative=-0.1, **{"above 1": 1.1}),
            "ratio: a schedule": lambda: prune(10, lambda step: 0.5, 0, KEY),
            "num_labels: none": lambda: prune(0, 0.5, 0, KEY),
            "num_labels: a float": lambda: prune(10.0, 0.5, 0, KEY),
            "step: negative": lambda: prune(10, 0.5, -1, KEY),
            "step: a float": lambda: prune(10, 0.5, 1.0, KEY),
            "step: a vector": lambda: prune(10, 0.5, jnp.arange(2), KEY),
            "key: a number": lambda: prune(10, 0.5, 0, 0),
        },
    ),
)
