"""SaRA: fine-tuning of the weights that pretraining left idle."""

import math

import jax
import jax.numpy as jnp
import optax

from regjax.core import checks
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.gradients.sparsity.masked import masked_optimizer, refreshed
from regjax.weights.sparsity.small_weights import below


def sara(
    learning_rate: Strength | None = None,
    *,
    threshold: float = 2e-3,
    progressive_step: int = 2500,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: Strength = 1e-2,
    where: Where = "all",
) -> optax.GradientTransformationExtraArgs:
    r"""Progressive sparse adaptation: AdamW on the smallest pretrained weights alone; all others stay bit for bit.

    Formula:
      .. math:: w_i \leftarrow w_i + u_i \text{ where } m_i, \quad m = [|w_0| < \tau], \quad
        m \leftarrow m \wedge [|w_P| < \tau] \text{ after } P \text{ steps}

      ``u`` is the update of AdamW, weight decay included, and :math:`w_0` the weights that ``init`` sees. After P steps the
      entries that have grown useful stop, and those still idle go on; the moments are kept.

    Args:
      learning_rate: a number, at least 0, or a schedule. None (default): ``1e-3 * exp(-350 * threshold)``.
      threshold: :math:`\tau`, the magnitude below which a pretrained weight counts as idle, at least 0, default 2e-3: some 10
        to 20% of a diffusion model. 0 trains nothing.
      progressive_step: P, default 2500; negative: never.
      b1: the decay of the first moment in [0, 1), default 0.9.
      b2: the decay of the second moment in [0, 1), default 0.999.
      eps: added to the root of the second moment, default 1e-8, at least 0.
      weight_decay: times the learning rate, the fraction of a trained weight lost in a step, at least 0, default 0.01; a number
        or a schedule.
      where: which leaves are restricted: "all" (default: biases and scales too), None (kernels), a predicate
        ``(path, leaf) -> bool``, or a tree of booleans. The others are trained in full, as a new head should be.

    Returns:
      An optax optimiser whose ``update`` needs the parameters; the mask is ``state.mask``, True where a weight is trained. The
      rank term of the paper is a penalty before it, on the same mask: with
      ``mask = rj.weights.small_weight_mask(params, 2e-3)`` and
      ``rank = functools.partial(rj.weights.nuclear_norm, mask=mask, where=...)``, the optimiser is
      ``optax.chain(rj.gradients.add_penalty(rank, 5e-4), rj.gradients.sara())``.

    Raises:
      ValueError: if a number is out of range or not finite, ``where`` is wrong, or ``update`` gets no parameters.

    Cost:
      That of ``optax.adamw``, moments of all weights included, and a boolean and a choice for each weight.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.2 times the FLOPs and 1.3 times the bytes of a plain training
      step, and 0.01 times its memory more.

    Use:
      For: fine-tuning, forgetting.
      When: Fine-tuning through the 10 to 20 % of weights that pretraining left near 0, without adapters to merge. On digits it
        forgot the source less than full fine-tuning and learned about as well. Set the threshold by a quantile of your weights.
      Not when: Memory is short: moments of all weights are kept, unlike with `LoRALinear`. The new task is far from the old
        one. Small networks trained with decay, where most weights are small.
      Badly with: Layers before a normalisation and `weight_norm`, where small does not mean idle. Quantised or pruned models,
        whose zeros would fill. Full-size rank terms each step, which cost an SVD. Decay outside, which moves the rest.

    Example:
      >>> import jax.numpy as jnp, optax, regjax as rj
      >>> tx = rj.gradients.sara(0.1, threshold=0.5, weight_decay=0.0)
      >>> params, grads = {"kernel": jnp.array([[2.0, 0.3]])}, {"kernel": jnp.array([[1.0, 1.0]])}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> [round(float(w), 4) for w in optax.apply_updates(params, updates)["kernel"][0]]
      [2.0, 0.2]

    References:
      Hu et al., SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank Adaptation, 2024,
      arXiv 2409.06633; the mask-based one of the two published optimisers. The other, which stores the trained values alone,
      starts from their absolute values and loses the moments at the progressive step. In the code the rank term falls on one
      random matrix a step, among those with both sides above 64 and more than 100 idle entries; over all of them, divided by
      their number, it has the same mean.
    """
    name = "gradients.sara"
    if learning_rate is not None:
        checks.strength(name, "learning_rate", learning_rate, low=0.0)
    checks.number(name, "threshold", threshold, low=0.0)
    if not isinstance(progressive_step, jax.Array):  # optax.inject_hyperparams makes an array of it
        checks.integer(name, "progressive_step", progressive_step)
    checks.number(name, "b1", b1, low=0.0, high=1.0, open_high=True)
    checks.number(name, "b2", b2, low=0.0, high=1.0, open_high=True)
    checks.number(name, "eps", eps, low=0.0)
    checks.strength(name, "weight_decay", weight_decay, low=0.0)
    if learning_rate is None:
        # A Python number where it can be: an array would widen the updates of narrow weights.
        exp = jnp.exp if isinstance(threshold, jax.Array) else math.exp
        learning_rate = 1e-3 * exp(-350.0 * threshold)

    def initial(params: PyTree) -> PyTree:
        return below(name, params, threshold, where)

    def refine(mask: PyTree, params: PyTree, grads: PyTree, step: Array) -> PyTree:
        # Leaves that are trained in full have a single True, and keep it.
        still = lambda: jax.tree.map(jnp.logical_and, mask, initial(params))
        return refreshed(step == progressive_step, still, mask)

    adamw = optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    return masked_optimizer(name, adamw, initial=initial, refresh=refine, outside="frozen")
