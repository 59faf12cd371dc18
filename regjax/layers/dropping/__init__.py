"""Units, paths and weights dropped at random."""
