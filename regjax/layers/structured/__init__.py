"""Linear layers whose kernels have a structure: butterflies, templates, masks."""
