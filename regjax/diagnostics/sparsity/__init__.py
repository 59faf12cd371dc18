"""Which weights and blocks matter, and laws and bounds for models without the others."""
