"""Pruning and sparse training as optax transformations whose masks live in the optimiser state."""
