"""Georeferenced rasters: where pixels lie on the ground, read and written by window, stacked, registered, indexed."""
