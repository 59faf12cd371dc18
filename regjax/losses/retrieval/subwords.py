"""Classification of images by the words of their captions: SuperClass."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, sharding
from regjax.core.types import Array, Stateful


class SuperClassState(NamedTuple):
    """The memory of `superclass`.

    Attributes:
      document_frequency: float32 ``[V]``, the sum over batches of the share of captions with each token, first 0.
      steps: float32 ``[]``, the number of batches.
    """

    document_frequency: Array
    steps: Array


def superclass(vocab_size: int) -> Stateful:
    r"""Cross-entropy against the subwords of a caption, each weighted by how rare it is: pretraining without a text encoder.

    Formula:
      .. math:: -\sum_v \frac{w_v t_v}{\sum_u w_u t_u} \log softmax(z)_v, \quad
                w_v = \log \frac{n + 1 / B}{f_v + 1 / B}

      with t_v = 1 for the tokens that occur in the caption, however often and wherever, n the number of batches so far, f_v
      the sum over them of the share of captions with token v, and B the size of the batch. The current batch is counted
      first. A token in every caption (padding, say) has weight 0; without a token of weight above 0 the loss is 0.

    Args:
      vocab_size: V, the number of tokens.

    Returns:
      ``init() -> SuperClassState``, and ``apply(state, logits, token_ids, *, mask=None, axis_name=None) -> (loss [B], state)``:
      ``logits [B, V]``, to which alone gradient flows; integer ``token_ids [B, L]``, the captions; ``mask``, boolean ``[B, L]``:
      the tokens that count, the others may hold anything (give it where some captions have no padding: its weight is not 0
      then); ``axis_name``, the mapped axis or a tuple of them over which the batch is split under ``shard_map`` or
      ``pmap``: f is then that of the whole batch on all devices, and B its size. Under ``jit`` with a sharded batch it is so
      without. The loss is in float32 or better, NaN for a token id outside [0, V), so that a wrong vocabulary is seen.

    Raises:
      ValueError: if ``vocab_size`` is below 1; in ``apply``, if the state is not of this V, or a shape or dtype does not fit.

    Cost:
      One pass over the logits each way, B L^2 comparisons of ids to find those that repeat, and in the backward pass a
      scatter of B L numbers into the gradient. 4 V bytes of memory across steps, which belong in the checkpoint. With
      ``axis_name``, a sum of V numbers over devices; on an Explicit mesh, B L ids gathered.
      XLA at [256, 49408]: at most 2.1 times the FLOPs and 1.2 times the bytes of cross-entropy, and 0.024 times its memory
      more.

    Use:
      For: few labels.
      When: Pretraining on images with captions without a text encoder or large batches: the words are the classes, rare ones
        count most. In a small test the weights helped a probe of the features.
      Not when: Word order or relations matter: it is a bag. Zero-shot by text is wanted: there is no text encoder. Few
        captions: frequencies settle late.
      Badly with: Captions without padding or ``mask``: padding then counts as a word. Shards without ``axis_name``, whose
        frequencies differ. `mixup` of images, as captions are ids. Batches by topic, in which the words of the topic look
        common at first.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> memory = rj.losses.superclass(4)
      >>> logits, captions = jnp.array([[0.0, 1.0, 2.0, 3.0]] * 2), jnp.array([[1, 2, 0], [1, 3, 0]])
      >>> loss, state = memory.apply(memory.init(), logits, captions)
      >>> [round(float(x), 4) for x in loss]
      [1.4402, 0.4402]

    References:
      Huang et al., Classification Done Right for Vision-Language Pre-Training, 2024, NeurIPS, arXiv 2411.03313. As the authors'
      code, whose padding drops out by its weight alone; the mask is an addition. The frequencies never decay.
    """
    name = "losses.superclass"
    vocab_size = checks.integer(name, "vocab_size", vocab_size, low=1)

    def init() -> SuperClassState:
        return SuperClassState(jnp.zeros(vocab_size, jnp.float32), jnp.zeros((), jnp.float32))

    def apply(
        state: SuperClassState, logits: Any, token_ids: Any, *, mask: Any = None, axis_name: Any = None
    ) -> tuple[Array, SuperClassState]:
        if not isinstance(state, SuperClassState):
            checks.fail(name, "state", "the SuperClassState that init() makes", state)
        shapes = {"document_frequency": (vocab_size,), "steps": ()}
        frequency, steps = (checks.floating(name, f"state.{n}", getattr(state, n), shape=shape) for n, shape in shapes.items())
        logits = checks.floating(name, "logits", logits, shape=(None, vocab_size))
        token_ids = checks.integers(name, "token_ids", token_ids, shape=(logits.shape[0], None))
        counts = checks.example_mask(name, "mask", mask, token_ids.shape)
        checks.axis_name(name, axis_name)
        x = classes.class_inputs(name, logits)
        dtype = x.logits.dtype

        ids = token_ids.astype(jnp.promote_types(token_ids.dtype, jnp.int32))
        wrong = (ids < 0) | (ids >= vocab_size)
        kept = ~wrong if counts is None else ~wrong & counts
        # Positions outside the vocabulary stand for tokens that do not count: they add nothing.
        ids = jnp.where(kept, ids, vocab_size)
        once = kept & ~_repeated(ids)

        # Of the ids alone, which are few beside the logits: on an Explicit mesh every device gets all of them.
        everywhere, first = (sharding.replicate(v).reshape(-1) for v in (ids, once))
        occurrences = jnp.zeros(vocab_size, dtype).at[everywhere].add(first.astype(dtype), mode="drop")
        batch = logits.shape[0]
        if axis_name is not None:
            occurrences, batch = jax.lax.psum(occurrences, axis_name), batch * jax.lax.psum(1, axis_name)
        frequency = jax.lax.stop_gradient(frequency).astype(dtype) + occurrences / max(batch, 1)
        steps = jax.lax.stop_gradient(steps).astype(dtype) + 1
        # At least 0 but for rounding: no token is in more captions than there are.
        small = 1 / max(batch, 1)
        weights = jnp.maximum(jnp.log((steps + small) / (frequency + small)), 0)

        # Cross-entropy without an array of targets: only the logits of the tokens that occur are read for it.
        shifted, log_total = classes.normalise(x.logits)
        within = jnp.where(kept, ids, 0)
        each = jnp.where(once, sharding.take_rows(weights, within), 0)
        used = each > 0
        total = jnp.sum(each, axis=-1)
        inner = jnp.sum(jnp.where(used, each * jnp.take_along_axis(shifted, within, axis=-1), 0), axis=-1)
        loss = (total * log_total - inner) / jnp.maximum(total, 1e-12)
        bad = jnp.any(wrong if counts is None else wrong & counts, axis=-1)
        new = SuperClassState(frequency.astype(jnp.float32), steps.astype(jnp.float32))
        return jnp.where(bad, jnp.nan, loss), new

    return Stateful(init, apply)


def _repeated(ids: Array) -> Array:
    """Whether the same id stands earlier in the row."""
    earlier = jnp.tri(ids.shape[1], k=-1, dtype=bool)
    return jnp.any((ids[:, :, None] == ids[:, None, :]) & earlier, axis=-1)
