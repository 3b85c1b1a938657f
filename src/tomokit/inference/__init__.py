"""From image files to label maps on those files' own grids, whole volumes in bounded memory."""

from tomokit.inference.anomalies import PatchScoreInferer, ReconstructionInferer
from tomokit.inference.holes import CutHolesd, KeepKnownd
from tomokit.inference.inferers import MirroredInferer, MixedPrecisionInferer
from tomokit.inference.read_ahead import ReadAhead
from tomokit.inference.scans import SCANS, first_image, list_inputs
from tomokit.inference.slab_inferer import SlabInferer
from tomokit.inference.writing import (
    WriteMapsd,
    WritePredictiond,
    finish_writing,
    write_array_behind,
    write_on_source_grid,
)

__all__ = [
    "SCANS",
    "CutHolesd",
    "KeepKnownd",
    "MirroredInferer",
    "MixedPrecisionInferer",
    "PatchScoreInferer",
    "ReadAhead",
    "ReconstructionInferer",
    "SlabInferer",
    "WriteMapsd",
    "WritePredictiond",
    "finish_writing",
    "first_image",
    "list_inputs",
    "write_array_behind",
    "write_on_source_grid",
]
