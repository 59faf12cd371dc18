"""Neighbours, pairs and candidates."""
