"""From image files to label maps on those files' own grids, whole volumes in bounded memory."""

from tomokit.inference.inferers import MirroredInferer, MixedPrecisionInferer
from tomokit.inference.scans import NIFTI, first_image, list_inputs
from tomokit.inference.slab_inferer import SlabInferer
from tomokit.inference.writing import WritePredictiond, write_on_source_grid

__all__ = [
    "NIFTI",
    "MirroredInferer",
    "MixedPrecisionInferer",
    "SlabInferer",
    "WritePredictiond",
    "first_image",
    "list_inputs",
    "write_on_source_grid",
]
