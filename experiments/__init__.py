"""Experiments over regjax: data, models, one trainer, recipes, studies and claims."""

import os

# Pictures are written to files, so no display is asked for; a notebook keeps the backend that it has set.
os.environ.setdefault("MPLBACKEND", "Agg")
