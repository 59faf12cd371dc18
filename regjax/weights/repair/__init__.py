"""Surgery on trained weights without training from scratch."""
