"""Receptive fields: which image pixels can reach a unit, computed exactly from the network itself."""

from lit_viz.functional.receptive_field.fields import ReceptiveField, receptive_field
from lit_viz.functional.receptive_field.table import LayerInfo, format_layer_table, layer_table

__all__ = ["LayerInfo", "ReceptiveField", "format_layer_table", "layer_table", "receptive_field"]
