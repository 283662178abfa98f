"""Plain networks, loading them, and how they take images."""

from lit_viz.networks.decoder import Decoder, Discriminator, load_decoder
from lit_viz.networks.inputs import InputFacts, input_facts, network_inputs, network_of
from lit_viz.networks.loading import Network, load_network
from lit_viz.networks.perceptual import PerceptualNetwork
from lit_viz.networks.small_cnn import SmallCNN
from lit_viz.networks.style_loss import StyleLoss, equivalent_iterations
from lit_viz.networks.transformer_net import TransformerNet

__all__ = [
    "Decoder",
    "Discriminator",
    "InputFacts",
    "Network",
    "PerceptualNetwork",
    "SmallCNN",
    "StyleLoss",
    "TransformerNet",
    "equivalent_iterations",
    "input_facts",
    "load_decoder",
    "load_network",
    "network_inputs",
    "network_of",
]
