"""Networks trained block by block, without gradients between the blocks."""
