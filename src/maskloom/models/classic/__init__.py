"""The published networks of segmentation competitions, name by name and shape by shape as their weights are stored."""
