"""Iterative soft shrinkage: the smallest weights fade in every step, and are pruned after a phase of it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from regjax.core import checks, trees
from regjax.core.sharding import placed_like
from regjax.core.strength import resolve
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.gradients.sparsity.masked import MaskState, refreshed
from regjax.gradients.updates import is_absent, map_updates, require_params
from regjax.weights.sparsity import masks, soft_shrinkage


def iss_p(
    sparsity: Strength = None,
    *,
    ratio: Strength = 0.95,
    shrink_steps: int = 100_020,
    scope: str = "local",
    n: int | None = None,
    m: int | None = None,
    where: Where = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Shrinks the smallest weights by a ratio after every step of the optimiser, then prunes those of the last step.

    Formula:
      .. math:: w \leftarrow shrink(w + u) \quad (t < T), \qquad w \leftarrow mask_T \odot (w + u) \quad (t \ge T)

      ``shrink`` is `regjax.weights.soft_shrinkage` with a selection anew in every step, from which weights can recover, and
      :math:`mask_T` the weights that the last selection left. Training starts from random weights, with the whole sparsity at
      once and a constant learning rate while ``t < T``; fine-tuning follows.

    Args:
      sparsity: the share of shrunk weights in [0, 1], a number or a schedule; None where ``n`` and ``m`` are given. At most
        99.5% of a leaf is shrunk. 0 changes nothing.
      ratio: what they are multiplied by, in [0, 1], default 0.95; a number or a schedule. 0 is iterative hard thresholding, 1
        changes nothing until pruning.
      shrink_steps: T, at least 1, default 100020.
      scope: ``"local"`` (default), each leaf by itself, or ``"global"``, all leaves together.
      n: how many of every ``m`` consecutive inputs are not shrunk; default None.
      m: the length of a group; default None.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans. The
        authors leave out the first and last layer.

    Returns:
      An optax transformation, the last of its chain, behind the optimiser; ``update`` needs the parameters. The state holds
      the mask: `find_mask`; while ``t < T``, weights outside it are shrunk, and not yet 0.

    Raises:
      ValueError: if a number is out of range, not exactly one of ``sparsity`` and the pair ``n``, ``m`` is given, an option is
        unknown, or ``update`` gets no parameters.

    Cost:
      About ``32 + log2(N)`` passes over the weights in each step of shrinking, none after; a byte for each weight.
      XLA counts the body of the search's loop once, and shrinking in every step.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.2 times the FLOPs and 2.5 times the bytes of a plain training
      step, and 0.65 times its memory more.

    Use:
      For: sparsity budget.
      When: Sparse from random weights at the full sparsity at once: it beat hard thresholding and pruning at the start on
        digits. Set ``shrink_steps`` to about half of the run. A ratio of 0.9 did better than 0.95 in short ones.
      Not when: Gradual `prune` is possible: it was well ahead at 95 % and more. The default ``shrink_steps`` in a short run:
        nothing is ever cut. Fine-tuning of a trained network, whose small weights matter.
      Badly with: Weights in bfloat16, whose rounding swallows the factor. A learning rate that decays during shrinking: weights
        can no longer recover. Anything after it in the chain. `decoupled_weight_decay` at strength, a second shrinkage.

    Example:
      >>> import jax.numpy as jnp, optax, regjax as rj
      >>> tx = optax.chain(optax.sgd(0.1), rj.gradients.iss_p(0.5, shrink_steps=1))
      >>> params, zero = {"kernel": jnp.array([[3.0, -1.0, 2.0, -0.5]])}, {"kernel": jnp.zeros((1, 4))}
      >>> state = tx.init(params)
      >>> for step in range(2):
      ...     updates, state = tx.update(zero, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print([round(float(x), 4) for x in params["kernel"][0]])
      [3.0, -0.95, 2.0, -0.475]
      [3.0, 0.0, 2.0, 0.0]

    References:
      Wang et al., Iterative Soft Shrinkage Learning for Efficient Image Super-Resolution, 2023, arXiv 2303.09650. The authors'
      code ends the phase when a counter, raised by 1e-4 every 20 steps for a weight that is always selected, exceeds 0.5: about
      100020 steps. It then fine-tunes 200k steps.
    """
    name = "gradients.iss_p"
    soft_shrinkage.check_shrinkage(name, checks.strength, sparsity, ratio, scope, n, m)
    if not isinstance(shrink_steps, jax.Array):  # optax.inject_hyperparams makes an array of it
        checks.integer(name, "shrink_steps", shrink_steps, low=1)

    def init(params: PyTree) -> MaskState:
        return MaskState(masks.full_mask(params, trees.select(name, params, where)), jnp.zeros((), jnp.int32), ())

    def update(updates: PyTree, state: MaskState, params: PyTree = None, **extra_args: Any) -> tuple[PyTree, MaskState]:
        require_params(name, params)
        shrinking = state.step < shrink_steps
        # What optax.apply_updates would give, leaf by leaf; weights without an update stay.
        reached = jax.tree.map(lambda u, p: p if is_absent(u) else (p + u).astype(p.dtype), updates, params, is_leaf=is_absent)
        chosen = trees.select(name, params, where)
        share = None if sparsity is None else resolve(sparsity, state.step, name, "sparsity")
        select = lambda: soft_shrinkage.shrinkage_mask(name, reached, chosen, share, scope, n, m)
        mask = refreshed(shrinking, select, state.mask)
        factor = jnp.where(shrinking, resolve(ratio, state.step, name, "ratio"), 0)

        def leaf(u: Array, p: Array, after: Array, kept: Array, use: bool) -> Array:
            if not use:
                return u
            # p + (0 - p) is exactly 0 in the dtype of p or a wider one; in a narrower one it would not be.
            dtype = jnp.result_type(u, p)
            wide = trees.accumulator(p)
            faded = jnp.where(factor == 0, 0, after.astype(wide) * factor.astype(wide)).astype(dtype)
            return masks.choose(kept | (factor == 1), placed_like(u, p).astype(dtype), faded - p.astype(dtype))

        moved = map_updates(leaf, updates, params, reached, mask, chosen)
        return moved, MaskState(mask, optax.safe_increment(state.step), ())

    return optax.GradientTransformationExtraArgs(init, update)
