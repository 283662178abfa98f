"""Pictures for people: colour maps, overlays, sheets of probe images, filters, patches, embeddings.

Every picture is a uint8 RGB array (H, W, 3), at most `max_size` px on its longer side, equal for equal input.
All share one page: a title, a muted line that says how to read the picture, a slim colour bar on the right
where colours stand for numbers, and one type scale. Nothing here touches pyplot or any other global state, so
that pictures can be drawn from any thread.
"""

from lit_viz.draw.canvas import ColorBar
from lit_viz.draw.colormaps import COLORMAPS, CVD_SAFE_10, colorize, colormap, limits
from lit_viz.draw.filters import filter_grid, filter_tiles
from lit_viz.draw.images import overlay, resize_map, to_uint8
from lit_viz.draw.patches import PatchRow, patch_sheet
from lit_viz.draw.scatter import Panel, scatter, scatter_panels
from lit_viz.draw.sheet import Card, sheet, tile_sizes
from lit_viz.draw.thumbnails import assign_to_grid, thumbnail_grid, thumbnail_map

__all__ = [
    "COLORMAPS",
    "CVD_SAFE_10",
    "Card",
    "ColorBar",
    "Panel",
    "PatchRow",
    "assign_to_grid",
    "colorize",
    "colormap",
    "filter_grid",
    "filter_tiles",
    "limits",
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
