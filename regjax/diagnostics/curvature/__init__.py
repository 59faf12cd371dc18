"""The loss around the weights: gradients, sharpness, spectra."""
