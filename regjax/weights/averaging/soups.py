"""Model soups: one model from the average of several that were fine-tuned from the same start."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, trees
from regjax.core.strength import accepts
from regjax.core.types import Array, PyTree


class GreedySoup(NamedTuple):
    """A `greedy_soup`: its parameters, the positions of its ingredients in the order they were added, and its score."""

    soup: PyTree
    indices: tuple[int, ...]
    score: float


class SoupWeights(NamedTuple):
    """What a `learned_soup` learns: the weights before their softmax, ``[M]`` or ``[leaves, M]``, and the scale of the logits."""

    mixing: Array
    logit_scale: Array | None


class LearnedSoup(NamedTuple):
    """A `learned_soup`: ``init() -> SoupWeights`` and ``apply(weights, *args, **kwargs) -> (loss, soup)``."""

    init: Callable[[], SoupWeights]
    apply: Callable[..., tuple[Array, PyTree]]


def uniform_soup(models: Iterable[PyTree]) -> PyTree:
    r"""The mean of the parameters of several models.

    Formula:
      .. math:: \theta = \frac{1}{M} \sum_m \theta_m

    Args:
      models: parameter trees of one structure, a list or an iterator that loads one after the other. They must share their
        initialisation: between models from different ones the loss is high. Running batch statistics are not weights:
        `recompute_batch_stats` measures those of the soup.

    Returns:
      The mean, in the dtypes of the first model, summed in float32 or better; leaves that are no floats are the first model's.

    Raises:
      ValueError: if ``models`` is no iterable of trees, is empty, or the trees differ in structure or shape.

    Cost:
      One pass over each model, and one copy of the parameters. No training; inference costs what one model does.
      XLA at 32 times [512, 512]: at most 2.5 times the FLOPs and 0.69 times the bytes of a copy of its arguments, and 0 times
      its memory more.

    Use:
      For: fine-tuning, distribution shift.
      When: Fine-tunings of one start are all of good quality and no held-out data are left to choose by; it reads one model at
        a time, so any number fits in memory.
      Not when: One of them has diverged or was tuned at far too large a rate, which spoils the mean: use `greedy_soup`.
        Averages of digits networks from different starts collapsed.
      Badly with: Batch normalisation without `recompute_batch_stats`; low-rank factors or differently masked models, which have
        to be merged or made dense first.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> models = [{"kernel": jnp.array([1.0, 2.0])}, {"kernel": jnp.array([3.0, 6.0])}]
      >>> rj.weights.uniform_soup(models)["kernel"].tolist()
      [2.0, 4.0]

    References:
      Wortsman et al., Model Soups: Averaging Weights of Multiple Fine-Tuned Models Improves Accuracy without Increasing
      Inference Time, 2022, arXiv 2203.05482.
    """
    name = "weights.uniform_soup"
    _check_iterable(name, models)
    first = mean = None
    count = 0
    for count, model in enumerate(models, 1):
        if count == 1:
            first, mean = model, trees.widen(model)
        else:
            mean = _add(mean, checks.same_structure(name, f"models[{count - 1}]", model, first, "the first model"), count)
    if not count:
        checks.fail(name, "models", "one model or more", models)
    return _narrow(mean, first)


def greedy_soup(models: Sequence[PyTree], score_fn: Callable[[PyTree], Any], *, strict: bool = True) -> GreedySoup:
    r"""Adds models to an average, the best first, as long as the score on held-out data rises.

    Formula:
      .. math:: \theta \leftarrow \frac{n \theta + \theta_m}{n + 1} \quad if \quad s \left( \frac{n \theta + \theta_m}{n + 1}
        \right) > s(\theta)

      for the models :math:`\theta_m` in falling order of their own scores, starting from the first of them; n counts those
      in the soup. The score of the soup is never below that of the best single model.

    Args:
      models: a list of parameter trees of one structure, fine-tuned from the same initialisation.
      score_fn: ``score_fn(params) -> number``, larger is better, such as the accuracy on a validation set; any function, called
        on the host with parameters in the models' dtypes. A score of NaN counts as the lowest.
      strict: accept a model only if the score rises (default); False: also if it stays equal, as the paper writes it.

    Returns:
      ``GreedySoup(soup, indices, score)``: the parameters in the dtypes of the best model (leaves that are no floats are its),
      the positions in ``models`` of the ingredients, and the score. Equal scores keep the order of ``models``.

    Raises:
      ValueError: if ``models`` is no list, is empty, or its trees differ in structure or shape; if ``score_fn`` is no function or
        returns no number; if ``strict`` is no bool.

    Cost:
      ``2 M - 1`` calls of ``score_fn`` and two copies of the parameters. It runs on the host, outside ``jit``.

    Use:
      For: fine-tuning, few labels, distribution shift.
      When: Several fine-tunings of one pretrained model (rates, seeds, augmentations) exist anyway and held-out data can rank
        them: never below the best single one on that data, and level with it on our test digits.
      Not when: The models start from different initialisations: no second one is accepted. With few held-out examples it
        selects noise: keep ``strict=True``.
      Badly with: Batch normalisation, unless ``score_fn`` calls `recompute_batch_stats` on each candidate; test data as the
        held-out set; models pruned with different masks, whose mean is dense.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> models = [jnp.float32(w) for w in (0.2, 1.5, 0.8, 3.0, 1.3)]
      >>> result = rj.weights.greedy_soup(models, lambda w: -abs(w - 1))
      >>> round(float(result.soup), 4), result.indices, round(result.score, 4)
      (1.05, (2, 4), -0.05)

    References:
      Wortsman et al., Model Soups: Averaging Weights of Multiple Fine-Tuned Models Improves Accuracy without Increasing
      Inference Time, 2022, arXiv 2203.05482. The paper accepts equal scores; the authors' code, and the default here, do not.
    """
    name = "weights.greedy_soup"
    models = _model_list(name, models)
    checks.function(name, "score_fn", score_fn)
    checks.boolean(name, "strict", strict)
    scores = [_score(name, score_fn(model)) for model in models]
    order = sorted(range(len(models)), key=lambda m: -scores[m])
    best, chosen = scores[order[0]], [order[0]]
    first = models[order[0]]
    soup, mean = first, trees.widen(first)
    for m in order[1:]:
        candidate = _add(mean, models[m], len(chosen) + 1)
        # What is scored is what is returned, rounded to the models' dtypes.
        narrow = _narrow(candidate, first)
        score = _score(name, score_fn(narrow))
        if score > best or (score == best and not strict):
            soup, mean, best = narrow, candidate, score
            chosen.append(m)
    return GreedySoup(soup, tuple(chosen), best)


def learned_soup(
    models: Sequence[PyTree],
    loss_fn: Callable[..., Any],
    *,
    granularity: Literal["global", "leaf"] = "global",
    learn_temperature: bool = True,
) -> LearnedSoup:
    r"""An average of models with learned weights, of whole models or of each leaf.

    Formula:
      .. math:: \theta = \sum_m \alpha_m \theta_m, \quad \alpha = softmax(r), \quad \min_{r, \beta} f(\theta, \beta)

      with f the loss on held-out data of the logits times :math:`\beta`. Every entry of r starts at 1 / M, so that the soup
      starts uniform; :math:`\beta` starts at 1.

    Args:
      models: a list of M parameter trees of one structure, fine-tuned from the same initialisation; constants.
      loss_fn: ``loss_fn(params, *args, logit_scale, **kwargs) -> scalar``, such as the mean cross-entropy of
        ``logit_scale * logits``; without ``learn_temperature`` it gets no ``logit_scale``.
      granularity: ``"global"`` (default), one weight for each model, or ``"leaf"``, one for each model and floating leaf.
      learn_temperature: whether to learn the scale of the logits, default True: averages are less confident than their parts.

    Returns:
      ``init() -> SoupWeights(mixing, logit_scale)``, a tree for any optimiser: ``mixing [M]`` or ``[leaves, M]`` in float32,
      ``logit_scale`` a scalar or None. And ``apply(weights, *args, **kwargs) -> (loss, soup)``, for
      ``jax.value_and_grad(apply, has_aux=True)``; the soup is in the dtypes of the first model, summed in float32 or better.
      Only the weights of the soup, and ``args``, get gradients.

    Raises:
      ValueError: if ``models`` is no list, is empty, or its trees differ in structure or shape; if an option is unknown; if
        ``loss_fn`` takes no ``logit_scale`` or returns no scalar; in ``apply``, if the weights are not this soup's.

    Cost:
      All M models in memory, one pass over them and one forward and backward pass of the model in a step. Call
      ``learned_soup`` inside the compiled step with the models among its arguments: closed over, they become constants of
      the program.
      XLA at 8 times [512, 512]: at most 1.2 times the FLOPs and 2.8 times the bytes of a gradient of one model, and 0.21 times
      its memory more.

    Use:
      For: fine-tuning, poor calibration.
      When: Fine-tunings of one start of very unequal quality, all fit in memory together, and held-out data for a few epochs of
        gradient steps; its learned scale of the logits corrects the low confidence of averages.
      Not when: There are few held-out examples, above all with ``granularity='leaf'``, one weight per model and leaf; or memory
        holds one model only: take `greedy_soup`.
      Badly with: `fit_temperature` on the same data, which fits a second scale; training data in place of held-out data, on
        which the most overfitted model wins; batch normalisation without `recompute_batch_stats`.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> models = [jnp.float32(0.0), jnp.float32(4.0)]
      >>> soup = rj.weights.learned_soup(models, lambda w, target: (w - target) ** 2, learn_temperature=False)
      >>> weights = soup.init()
      >>> (loss, mean), gradient = jax.value_and_grad(soup.apply, has_aux=True)(weights, 3.0)
      >>> float(loss), float(mean), gradient.mixing.tolist()
      (1.0, 2.0, [2.0, -2.0])

    References:
      Wortsman et al., Model Soups: Averaging Weights of Multiple Fine-Tuned Models Improves Accuracy without Increasing
      Inference Time, 2022, arXiv 2203.05482. The authors use AdamW, learning rate 0.05 without decay, for 5 epochs of the
      held-out data.
    """
    name = "weights.learned_soup"
    models = _model_list(name, models)
    checks.function(name, "loss_fn", loss_fn)
    checks.choice(name, "granularity", granularity, ("global", "leaf"))
    checks.boolean(name, "learn_temperature", learn_temperature)
    if learn_temperature and not accepts(loss_fn, "logit_scale"):
        checks.fail(name, "loss_fn", "a function that takes logit_scale=, as learn_temperature is True", loss_fn)
    floats = [i for i, leaf in enumerate(jax.tree.leaves(models[0])) if trees.is_float(leaf)]
    shape = (len(models),) if granularity == "global" else (len(floats), len(models))

    def init() -> SoupWeights:
        scale = jnp.ones((), jnp.float32) if learn_temperature else None
        return SoupWeights(jnp.full(shape, 1 / len(models), jnp.float32), scale)

    def mixed(mixing: Array) -> PyTree:
        alpha = jax.nn.softmax(mixing.astype(trees.accumulator(mixing)), axis=-1)
        leaves, structure = jax.tree.flatten(models[0])
        others = [jax.tree.leaves(model) for model in models]
        for row, i in enumerate(floats):
            share = alpha if granularity == "global" else alpha[row]
            parts = [jax.lax.stop_gradient(jnp.asarray(other[i])) for other in others]
            dtype = trees.accumulator(*parts)
            total = sum(share[m].astype(dtype) * part.astype(dtype) for m, part in enumerate(parts))
            leaves[i] = jnp.asarray(total).astype(jnp.result_type(leaves[i]))
        return jax.tree.unflatten(structure, leaves)

    def apply(weights: SoupWeights, *args: Any, **kwargs: Any) -> tuple[Array, PyTree]:
        if not isinstance(weights, SoupWeights) or (weights.logit_scale is not None) != learn_temperature:
            checks.fail(name, "weights", "the SoupWeights that init() makes", weights)
        soup = mixed(checks.floating(name, "weights.mixing", weights.mixing, shape=shape))
        if learn_temperature:
            kwargs["logit_scale"] = checks.floating(name, "weights.logit_scale", weights.logit_scale, shape=())
        loss = loss_fn(soup, *args, **kwargs)
        if not trees.is_float(loss) or jnp.shape(loss) != ():
            checks.fail(name, "loss_fn", "a function that returns a floating-point scalar", loss)
        return jnp.asarray(loss), soup

    return LearnedSoup(init, apply)


def _check_iterable(name: str, models: Any) -> None:
    if not isinstance(models, Iterable) or isinstance(models, (str, Mapping, jax.Array, np.ndarray)):
        checks.fail(name, "models", "a list of parameter trees", models)


def _model_list(name: str, models: Any) -> list[PyTree]:
    if not isinstance(models, (list, tuple)) or not models:
        checks.fail(name, "models", "a list of one parameter tree or more", models)
    for m, model in enumerate(models[1:], 1):
        checks.same_structure(name, f"models[{m}]", model, models[0], "the first model")
    return list(models)


def _score(name: str, value: Any) -> float:
    """A score as a Python number, NaN as the lowest."""
    score = checks.concrete(name, "score_fn", value, "as it is called on the host: greedy_soup runs outside jit")
    if score.size != 1 or score.dtype.kind not in "fiub":
        checks.fail(name, "score_fn", "a function that returns one number", value)
    number = float(score.reshape(()))
    return -np.inf if np.isnan(number) else number


def _narrow(tree: PyTree, like: PyTree) -> PyTree:
    """Floating leaves in the dtypes of another tree, and its leaves that are no floats."""
    return jax.tree.map(lambda x, y: x.astype(jnp.result_type(y)) if trees.is_float(y) else y, tree, like)


@jax.jit
def _add(mean: PyTree, model: PyTree, count: Any) -> PyTree:
    """The mean of ``count`` models from that of all but one. The mean of equal models is exact in this form."""
    leaf = lambda m, x: m + (x.astype(m.dtype) - m) / jnp.asarray(count, m.dtype) if trees.is_float(m) else m
    return jax.tree.map(leaf, mean, model)
