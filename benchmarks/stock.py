"""MONAI's stock way to train a segmentation, as its tutorials show it: what the bundle's loop is compared with.

`CacheDataset` with per-sample dictionary transforms, `DataLoader`, `SupervisedTrainer` with its defaults, float32.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader
from monai.engines import SupervisedTrainer
from monai.losses import DiceCELoss
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    Rand3DElasticd,
    RandAdjustContrastd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandSimulateLowResolutiond,
    SpatialPadd,
)

KEYS = ["image", "label"]
ORDERS = ["bilinear", "nearest"]


def stock_transforms(patch_size: Sequence[int]) -> Compose:
    """Return per-sample transforms with the probabilities and ranges of the bundle's batched ones."""
    rotation, scale = [np.pi / 12] * 3, [(-0.15, 0.2)] * 3
    return Compose(
        [
            LoadImaged(KEYS),
            EnsureChannelFirstd(KEYS),
            Orientationd(KEYS, axcodes="RAS"),
            NormalizeIntensityd("image"),
            SpatialPadd(KEYS, spatial_size=patch_size),
            RandCropByPosNegLabeld(KEYS, label_key="label", spatial_size=patch_size, pos=1, neg=1),
            RandAffined(KEYS, prob=0.2, rotate_range=rotation, mode=ORDERS, padding_mode="border"),
            RandAffined(KEYS, prob=0.2, scale_range=scale, mode=ORDERS, padding_mode="border"),
            Rand3DElasticd(KEYS, (3, 5), (20, 60), prob=0.1, mode=ORDERS, padding_mode="border"),
            RandFlipd(KEYS, prob=0.5, spatial_axis=0),
            RandGaussianNoised("image", prob=0.1, std=0.1),
            RandGaussianSmoothd("image", (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=0.2),
            RandScaleIntensityd("image", 0.25, prob=0.15),
            RandScaleIntensityd("image", 0.25, prob=0.15),
            RandSimulateLowResolutiond("image", prob=0.25, zoom_range=(0.5, 1.0)),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        ]
    )


def stock_trainer(
    network: torch.nn.Module,
    cases: Sequence[Mapping[str, Any]],
    patch_size: Sequence[int],
    batch_size: int,
    num_workers: int = 0,
) -> SupervisedTrainer:
    """Return a trainer of `network` on the cases."""
    dataset = CacheDataset(cases, stock_transforms(patch_size), progress=False)
    loader = DataLoader(dataset, num_workers, batch_size=batch_size, shuffle=True, drop_last=True)
    loss = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)

    def total(outputs: Any, label: torch.Tensor) -> torch.Tensor:
        heads = outputs if isinstance(outputs, list) else [outputs]
        weights = [0.5**number for number in range(len(heads))]
        terms = [
            weight * loss(head, torch.nn.functional.interpolate(label, head.shape[2:]))
            for weight, head in zip(weights, heads, strict=True)
        ]
        return torch.stack(terms).sum() / sum(weights)

    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=loader,
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), 3e-3),
        loss_function=total,
    )
