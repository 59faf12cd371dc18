"""Averages of the weights of one run or of several."""
