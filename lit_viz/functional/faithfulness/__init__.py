"""Whether maps can be trusted: against the network's own answers, its weights, and the objects in the image."""

from lit_viz.functional.faithfulness.insertion_deletion import Curves, insertion_deletion
from lit_viz.functional.faithfulness.pointing import boxes_to_masks, energy_inside, pointing_score
from lit_viz.functional.faithfulness.randomization import Randomization, randomization_check

__all__ = [
    "Curves",
    "Randomization",
    "boxes_to_masks",
    "energy_inside",
    "insertion_deletion",
    "pointing_score",
    "randomization_check",
]
