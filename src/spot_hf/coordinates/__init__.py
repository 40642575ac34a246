"""Coordinate data sets: token positions per image, that people share and use with models of their own."""
