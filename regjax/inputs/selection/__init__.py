"""Which examples, and which pairs of classes, a step learns from."""
