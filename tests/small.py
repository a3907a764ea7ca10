"""The smallest settings of the default recipe that keep every one of its stages."""

SMALL = [
    "scale=smoke",
    "members.0.network.weights=none",
    "members.0.training.epochs=1",
    "members.0.training.images_per_epoch=8",
]
"""For ``settings`` of ``fit``: seconds instead of minutes."""
