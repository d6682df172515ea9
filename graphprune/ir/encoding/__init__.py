"""Sparse weights that are small in the file: how they are stored, and the standard operators that rebuild them."""
