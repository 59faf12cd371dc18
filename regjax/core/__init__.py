"""The ground that the stages stand on: argument checks, trees, strengths, class axes, shardings and shared types."""
