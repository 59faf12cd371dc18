"""Examples of `regjax.losses`: those of mixed labels."""

from tests.contracts.table.losses import logit_loss

EXAMPLES = (logit_loss("softmax_binary_cross_entropy"),)
