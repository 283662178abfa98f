"""Occlusion: slide a patch over the image and see how much the class score suffers.

`heatmap` holds what is called; `grid` says where the patch stands. A network is written down (`tape`), made ready
(`program`) and computed only where a covered copy differs (`incremental`): which pixels change is interval arithmetic
(`spans`), how each operation acts on windows of maps are the `rules`, the copying is in `windows`, and `plan` says
which positions go together. `engine` chooses between that and full passes.
"""

from lit_viz.functional.occlusion.grid import Grid
from lit_viz.functional.occlusion.heatmap import OcclusionMap, check_window, occlusion, occlusion_map, on_image

__all__ = ["Grid", "OcclusionMap", "check_window", "occlusion", "occlusion_map", "on_image"]
