"""Random changes of whole batches on the device they are on, as MONAI dictionary transforms of plain tensors.

Each takes `{"image": (B, C, X, Y[, Z]), "label": (B, 1, X, Y[, Z])}` and returns it with new tensors. Every sample is
drawn for by itself; a sample that was not drawn keeps its values bit for bit. The draws come from torch's global
generator on the CPU, so nothing waits for the device.
"""

from tomokit.augmentation.intensity import (
    BatchRandBiasFieldd,
    BatchRandBrightnessd,
    BatchRandContrastd,
    BatchRandGammad,
    BatchRandGaussianNoised,
    BatchRandGaussianSmoothd,
    BatchRandLowResolutiond,
)
from tomokit.augmentation.spatial import BatchRandFlipd, BatchRandSpatiald

__all__ = [
    "BatchRandBiasFieldd",
    "BatchRandBrightnessd",
    "BatchRandContrastd",
    "BatchRandFlipd",
    "BatchRandGammad",
    "BatchRandGaussianNoised",
    "BatchRandGaussianSmoothd",
    "BatchRandLowResolutiond",
    "BatchRandSpatiald",
]
