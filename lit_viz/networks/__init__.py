"""Plain networks, loading them, and how they take images."""

from lit_viz.networks.decoder import Decoder, Discriminator, load_decoder
from lit_viz.networks.exporting import export_onnx
from lit_viz.networks.inputs import InputFacts, input_facts, network_inputs, network_of
from lit_viz.networks.loading import Network, load_network
from lit_viz.networks.muon import Muon
from lit_viz.networks.perceptual import PerceptualNetwork
from lit_viz.networks.small_cnn import SmallCNN
from lit_viz.networks.style_loss import StyleLoss, equivalent_iterations, iteration_curves
from lit_viz.networks.style_network import StyleNetwork, load_style_network
from lit_viz.networks.tiled_style import stylized
from lit_viz.networks.transformer_net import TransformerNet

__all__ = [
    "Decoder",
    "Discriminator",
    "InputFacts",
    "Muon",
    "Network",
    "PerceptualNetwork",
    "SmallCNN",
    "StyleLoss",
    "StyleNetwork",
    "TransformerNet",
    "equivalent_iterations",
    "export_onnx",
    "input_facts",
    "iteration_curves",
    "load_decoder",
    "load_network",
    "load_style_network",
    "network_inputs",
    "network_of",
    "stylized",
]
