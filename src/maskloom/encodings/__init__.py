"""Mask ↔ text, geometry and compressed maps, for those who read truth and those who write results."""
