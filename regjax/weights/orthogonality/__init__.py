"""Penalties that keep the units of a layer orthonormal."""
