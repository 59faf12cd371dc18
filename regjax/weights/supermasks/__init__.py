"""Masks that are learned by scores over fixed or shared weights."""
