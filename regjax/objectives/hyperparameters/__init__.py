"""Strengths and predictors that are learned while the network is trained."""
