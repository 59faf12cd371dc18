"""Other parameters for the same kernel, and their folding into plain kernels."""
