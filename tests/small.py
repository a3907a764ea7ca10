"""The smallest settings of the default recipe that keep every one of its stages."""

OWN_NETWORK = [
    "scale=smoke",
    "members.0.network.weights=none",
    "members.0.training.epochs=1",
    "members.0.training.images_per_epoch=8",
]
"""For ``settings`` of ``fit``: seconds instead of minutes, with the network that the recipe plans."""

SMALL = [
    *OWN_NETWORK,
    "members.0.network.architecture=unet_elu",
    "members.0.network.encoder=none",
    "members.0.network.decoder_channels=null",
    "members.0.network.width=0.125",
    "members.0.optimiser.frozen=[]",
]
"""The same with a network of a few thousand weights, for what no network matters to; a quarter of the time."""
