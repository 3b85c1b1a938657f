"""Random changes of whole batches on the device that they are on, as MONAI dictionary transforms of plain tensors.

Each takes `{"image": (B, C, X, Y[, Z]), "label": (B, 1, X, Y[, Z])}` and leaves its tensors as they are: what changes
is returned as a new tensor. Each sample is drawn for by itself; one that is not drawn keeps every bit. What is drawn
comes from torch's global generator on the CPU, so that nothing waits for the device; only noise is made on it.
"""

from tomokit.augmentation.distortions import (
    BatchMaskedBlocksd,
    BatchRandBentIntensityd,
    BatchRandPaintedBoxesd,
    BatchRandShuffledBlocksd,
)
from tomokit.augmentation.fixed import FixedDraws
from tomokit.augmentation.foreign import BatchRandForeignPatchesd
from tomokit.augmentation.intensity import (
    BatchRandBiasFieldd,
    BatchRandBrightnessd,
    BatchRandContrastd,
    BatchRandGammad,
    BatchRandGaussianNoised,
    BatchRandGaussianSmoothd,
    BatchRandLowResolutiond,
    BatchRandShiftIntensityd,
)
from tomokit.augmentation.mixup import BatchRandMixupd
from tomokit.augmentation.pairs import BatchRandShiftScansd, BatchRandSwapScansd
from tomokit.augmentation.spatial import BatchRandFlipd, BatchRandSpatiald
from tomokit.augmentation.synthesis import BatchImagesFromLabelsd, BatchNormalizeIntensityd

__all__ = [
    "BatchImagesFromLabelsd",
    "BatchMaskedBlocksd",
    "BatchNormalizeIntensityd",
    "BatchRandBentIntensityd",
    "BatchRandBiasFieldd",
    "BatchRandBrightnessd",
    "BatchRandContrastd",
    "BatchRandFlipd",
    "BatchRandForeignPatchesd",
    "BatchRandGammad",
    "BatchRandGaussianNoised",
    "BatchRandGaussianSmoothd",
    "BatchRandLowResolutiond",
    "BatchRandMixupd",
    "BatchRandPaintedBoxesd",
    "BatchRandShiftIntensityd",
    "BatchRandShiftScansd",
    "BatchRandShuffledBlocksd",
    "BatchRandSpatiald",
    "BatchRandSwapScansd",
    "FixedDraws",
]
