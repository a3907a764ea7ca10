"""Georeferenced rasters: where their pixels lie on the ground, read by window, written with overviews."""
