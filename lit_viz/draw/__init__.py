"""Pictures for people: colour maps, overlays, sheets of probe images, filters, patches, embeddings.

Every picture is a uint8 RGB array (H, W, 3), at most `max_size` px on its longer side, equal for equal input.
All share one page: a title, a muted line that says how to read the picture, a slim colour bar on the right
where colours stand for numbers, and one type scale. Nothing here touches pyplot or any other global state, so
that pictures can be drawn from any thread.
"""

from lit_viz.draw.activations import MapBlock, activation_sheet
from lit_viz.draw.board import Bars, Tile, board, mosaic
from lit_viz.draw.canvas import ColorBar
from lit_viz.draw.colormaps import COLORMAPS, CVD_SAFE_10, bright_end, colorize, colormap, limits
from lit_viz.draw.curves import CurvePanel, Table, curve_panels
from lit_viz.draw.filters import filter_grid, filter_tiles
from lit_viz.draw.images import around_grey, overlay, resize_map, to_uint8
from lit_viz.draw.neighbors import Neighbor, NeighborRow, neighbor_sheet
from lit_viz.draw.patches import PatchRow, patch_sheet
from lit_viz.draw.scatter import Panel, scatter, scatter_panels
from lit_viz.draw.sheet import Card, sheet, tile_sizes
from lit_viz.draw.thumbnails import assign_to_grid, thumbnail_grid, thumbnail_map

__all__ = [
    "COLORMAPS",
    "CVD_SAFE_10",
    "Bars",
    "Card",
    "ColorBar",
    "CurvePanel",
    "MapBlock",
    "Neighbor",
    "NeighborRow",
    "Panel",
    "PatchRow",
    "Table",
    "Tile",
    "activation_sheet",
    "around_grey",
    "assign_to_grid",
    "board",
    "bright_end",
    "colorize",
    "colormap",
    "curve_panels",
    "filter_grid",
    "filter_tiles",
    "limits",
    "mosaic",
    "neighbor_sheet",
    "overlay",
    "patch_sheet",
    "resize_map",
    "scatter",
    "scatter_panels",
    "sheet",
    "thumbnail_grid",
    "thumbnail_map",
    "tile_sizes",
    "to_uint8",
]
