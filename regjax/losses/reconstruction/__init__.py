"""Hidden parts of inputs, masks that explain, and gates on features."""
