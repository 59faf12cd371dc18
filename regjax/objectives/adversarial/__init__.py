"""Losses at perturbed inputs: attacks, training on them, and what keeps single steps honest."""
