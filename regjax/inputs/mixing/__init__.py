"""Several examples in one: mixup, CutMix and their kin."""
