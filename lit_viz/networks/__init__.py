"""Plain networks, and loading them."""

from lit_viz.networks.loading import Network, load_network
from lit_viz.networks.small_cnn import SmallCNN

__all__ = ["Network", "SmallCNN", "load_network"]
