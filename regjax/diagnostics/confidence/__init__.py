"""How sure a model is, and with what right."""
