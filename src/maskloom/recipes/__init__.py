"""Functions that return complete recipes for a source and a device."""
