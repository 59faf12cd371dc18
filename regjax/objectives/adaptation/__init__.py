"""Objectives at test time, without labels."""
