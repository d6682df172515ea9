"""Rewrites that leave the function of a model as it is."""
