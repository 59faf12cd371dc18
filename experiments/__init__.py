"""Experiments over regjax: data, models, one trainer, recipes, studies and claims."""
