"""What spoils a scan, simulated on whole batches on their device, with physical parameters and their units.

They are transforms as those of `tomokit.augmentation`, whose `BatchRandGaussianNoised` and `BatchRandBiasFieldd` belong
here too: `{"image": (B, C, X, Y[, Z])}`, each sample drawn for by itself. Images are in units of their own range: 0 is
no signal, 1 is bright. What is told in mm needs the voxels' size, `"spacing"` (B, dimensions) in mm.
"""

from tomokit.degradation.acquisition import BatchRandGhostsd, BatchRandMotiond
from tomokit.degradation.background import BatchRandEmptyBackgroundd
from tomokit.degradation.cases import DegradeCased, NoteSpacingd, case_seed, list_degraded
from tomokit.degradation.holes import HOLE, BatchRandHolesd
from tomokit.degradation.noise import BatchRandLowDosed, BatchRandRicianNoised
from tomokit.degradation.resolution import BatchRandBlurd, BatchRandMissingSlicesd, BatchRandThickSlicesd

__all__ = [
    "HOLE",
    "BatchRandBlurd",
    "BatchRandEmptyBackgroundd",
    "BatchRandGhostsd",
    "BatchRandHolesd",
    "BatchRandLowDosed",
    "BatchRandMissingSlicesd",
    "BatchRandMotiond",
    "BatchRandRicianNoised",
    "BatchRandThickSlicesd",
    "DegradeCased",
    "NoteSpacingd",
    "case_seed",
    "list_degraded",
]
