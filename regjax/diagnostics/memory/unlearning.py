"""Machine unlearning: what a network still knows of the data that it should forget, against one that never saw them."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from regjax.core import checks
from regjax.core.classes import class_inputs
from regjax.core.types import Array


class UnlearningMetrics(NamedTuple):
    """Measures of unlearning, float32 scalars (or better), and how far each is from a retrained network's.

    Attributes:
      ua: unlearning accuracy, the share of the examples to be forgotten that are misclassified.
      ra: remaining accuracy, on the examples to be kept.
      ta: test accuracy.
      ua_gap: ``|ua - ua of the retrained network|``; None without one.
      ra_gap: the same for ``ra``.
      ta_gap: the same for ``ta``.
    """

    ua: Array
    ra: Array
    ta: Array
    ua_gap: Array | None = None
    ra_gap: Array | None = None
    ta_gap: Array | None = None


def unlearning_metrics(forget: Any, retain: Any, test: Any, *, retrained: UnlearningMetrics | None = None) -> UnlearningMetrics:
    r"""Accuracies on what is to be forgotten, kept and met anew, and their distance from those of a retrained network.

    Formula:
      .. math:: UA = 1 - accuracy(forget), \quad RA = accuracy(retain), \quad TA = accuracy(test)

      None of them is better for being large: the aim is the network trained anew without the forgotten examples, and the
      smaller the gaps to its values, the better.

    Args:
      forget: the examples to be forgotten, a pair ``(logits [N, K], labels [N])`` with integer class ids.
      retain: the examples to be kept, such a pair.
      test: examples never trained on, such a pair.
      retrained: what this function returns for a network trained without the forgotten examples; None (default): no gaps.

    Returns:
      ``UnlearningMetrics(ua, ra, ta, ua_gap, ra_gap, ta_gap)``. `membership_inference_efficacy` and the time taken are the two
      other published measures.

    Raises:
      ValueError: if a pair is none, is empty, has wrong shapes or dtypes, or ``retrained`` is no UnlearningMetrics.

    Cost:
      One pass over the logits.
      XLA at 3 times [1024, 1000]: at most 9.9 times the FLOPs and 0.56 times the bytes of a copy of its arguments, and 0.01
      times its memory more.

    Use:
      For: unlearning.
      When: Any unlearning, with a network trained anew without the data as ``retrained``: the gaps rank methods. Several seeds
        of retraining say how small a gap can be.
      Not when: Retraining is out of reach: without it a high ``ua`` may as well be damage to all, to which gradient ascent came
        near in the forgetting study. Use `forgetting_score` for whole classes.
      Badly with: Mixing whole-class and random forgetting in one table: a retrained network errs on all of the former and on
        few of the latter.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> logits = jnp.array([[2.0, 0.0], [0.0, 2.0]])
      >>> forget, retain, test = ((logits, jnp.array(labels)) for labels in ([1, 1], [0, 1], [0, 0]))
      >>> got = rj.diagnostics.unlearning_metrics(forget, retain, test)
      >>> float(got.ua), float(got.ra), float(got.ta)
      (0.5, 1.0, 0.5)

    References:
      Jia et al., Model Sparsity Can Simplify Machine Unlearning, 2023, arXiv 2304.04934.
    """
    name = "diagnostics.unlearning_metrics"
    if retrained is not None and not isinstance(retrained, UnlearningMetrics):
        checks.fail(name, "retrained", "the UnlearningMetrics of the retrained network, or None", retrained)
    # One less a share of errors: without any it is 1 to the last bit, where a mean of hits is not.
    measured = (_error(name, "forget", forget), 1 - _error(name, "retain", retain), 1 - _error(name, "test", test))
    if retrained is None:
        return UnlearningMetrics(*measured)
    gaps = (jnp.abs(ours - jnp.asarray(theirs)) for ours, theirs in zip(measured, retrained[:3], strict=True))
    return UnlearningMetrics(*measured, *gaps)


def membership_inference_efficacy(retain_confidence: Any, test_confidence: Any, forget_confidence: Any) -> float:
    r"""The share of forgotten examples that an attack takes for never seen. On the host, with scikit-learn.

    Formula:
      .. math:: \frac{1}{|F|} \sum_{i \in F} [a(p_i) = \text{non-member}]

      for the probability p of the true class, and a support vector machine a with a Gaussian kernel (C = 3, gamma of the one
      feature: 1) trained to tell kept examples (members) from test ones.

    Args:
      retain_confidence: probabilities of the true class ``[N]`` on examples that were kept, concrete.
      test_confidence: those of as many examples never trained on, ``[N]``: draw as many of the larger set.
      forget_confidence: those of the examples to be forgotten, ``[M]``.

    Returns:
      A Python float in [0, 1]. Compare it with that of a network trained without the forgotten examples: about 0.5 where
      the confidences of kept and unseen examples do not differ.

    Raises:
      ValueError: if an array is no floating-point vector, is empty, traced, or leaves [0, 1], or the first two differ in length.
      ImportError: if scikit-learn is absent, which ``pip install 'regjax[experiments]'`` installs.

    Cost:
      The training of a support vector machine on 2 N examples, between quadratic and cubic in N; not for use under ``jit``.

    Use:
      For: unlearning.
      When: Random examples were forgotten: whether their confidences give away that they were once trained on, beside that of a
        retrained network. With wrong labels to forget, `weights.l1` brought fine-tuning nearer to it on digits.
      Not when: Whole classes were forgotten: in the forgetting study retraining scored 1 and the value repeated the errors of
        `unlearning_metrics`. As a proof of privacy: it is one weak attack.
      Badly with: Losses that hold confidence down (`label_smoothing`, `logit_norm`), under which members and others look alike.
        Test examples of another distribution than the kept ones.

    Example:
      >>> import numpy as np, regjax as rj
      >>> kept, unseen = np.linspace(0.9, 1.0, 20), np.linspace(0.2, 0.6, 20)
      >>> rj.diagnostics.membership_inference_efficacy(kept, unseen, np.array([0.3, 0.4, 0.5, 0.95]))
      0.75

    References:
      Jia et al., Model Sparsity Can Simplify Machine Unlearning, 2023, arXiv 2304.04934; the confidence attack of the authors'
      code, from Song and Mittal, Systematic Evaluation of Privacy Risks of Machine Learning Models, 2021, arXiv 2003.10595. The
      code's modified entropy indexes and repeats wrongly, and is left out.
    """
    name = "diagnostics.membership_inference_efficacy"
    retain = _confidence(name, "retain_confidence", retain_confidence)
    test = _confidence(name, "test_confidence", test_confidence)
    forget = _confidence(name, "forget_confidence", forget_confidence)
    if test.shape != retain.shape:
        checks.fail(name, "test_confidence", f"of as many examples as retain_confidence, {retain.size}", test)
    try:
        from sklearn.svm import SVC
    except ImportError as error:
        raise ImportError(f"regjax.{name} needs scikit-learn: pip install 'regjax[experiments]'") from error
    attack = SVC(C=3.0, gamma="auto", kernel="rbf")
    attack.fit(np.concatenate([retain, test])[:, None], np.repeat([1, 0], retain.size))
    return float(np.mean(attack.predict(forget[:, None]) == 0))


def _error(name: str, argument: str, pair: Any) -> Array:
    """The share of examples whose largest logit is not that of their class."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        checks.fail(name, argument, "a pair (logits [N, K], labels [N])", pair)
    logits = checks.floating(name, f"{argument} logits", pair[0], ndim=2)
    labels = checks.integers(name, f"{argument} labels", pair[1], shape=logits.shape[:1])
    if not logits.size:
        checks.fail(name, f"{argument} logits", "an array with at least one example and class", logits)
    x = class_inputs(name, logits, labels)
    return jnp.mean((jnp.argmax(x.logits, axis=-1) != x.labels).astype(x.logits.dtype))


def _confidence(name: str, argument: str, value: Any) -> np.ndarray:
    """Checked probabilities on the host, in float64."""
    checks.floating(name, argument, value, ndim=1)
    given = checks.concrete(name, argument, value).astype(np.float64)
    if not given.size:
        checks.fail(name, argument, "of at least one example", given)
    if not np.all((given >= 0) & (given <= 1)):
        checks.fail(name, argument, "an array of probabilities in [0, 1]", given)
    return given
