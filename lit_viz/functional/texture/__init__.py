"""Classical texture synthesis: more of a texture, put together from pixels or blocks of an example."""

from lit_viz.functional.texture.efros_leung import efros_leung
from lit_viz.functional.texture.quilting import image_quilting, minimum_error_cut
from lit_viz.functional.texture.source import Texture, patch_error

__all__ = ["Texture", "efros_leung", "image_quilting", "minimum_error_cut", "patch_error"]
