"""The benchmark: wall time as ratios measured in alternation in one run, and XLA's own counts of the same programs."""
