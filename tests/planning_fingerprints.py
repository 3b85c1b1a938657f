"""The Decathlon's ten tasks as the planner sees them, with nnU-Net's published plans; all figures are rounded.

Axes are x, y, z. Sizes are the median volume's at the median spacing; places and shares of structures are rough.
"""

import math
from typing import Any, NamedTuple

from tomokit.planning.fingerprint import Fingerprint, Intensity, Spread, Structure
from tomokit.planning.rules import Budget, choose_geometry


class Task(NamedTuple):
    """A fingerprint, and nnU-Net's full-resolution spacing (mm), patch (voxels) and batch size for it."""

    fingerprint: Fingerprint
    spacing: tuple[float, ...]
    patch: tuple[int, ...]
    batch: int


def spread(*median: float, p10: tuple[float, ...] | None = None) -> Spread:
    return Spread(p10 or median, p10 or median, median, median, median)


def structure(value: int, name: str, ml: float, share: float, x: float = 0.0, upper: float = 0.5, pieces: float = 1):
    return Structure(value, name, 100, ml, ml / 5, share, pieces, ml / pieces, (x, 0.1, 0.1), (upper, 0.95, 0.95))


def make_fingerprint(
    name: str = "made",
    modality: tuple[str, ...] = ("CT",),
    shape: tuple[float, ...] = (128, 128, 128),
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
    structures: tuple[Structure, ...] = (structure(1, "organ", 100, 0.05),),
    training: int = 100,
    window: tuple[float, float, float, float] = (80, 40, -20, 200),
    p10: tuple[float, ...] | None = None,
    **more: Any,
) -> Fingerprint:
    inside = tuple(Intensity(*window) for _ in modality)
    names = {str(item.value): item.name for item in structures}
    return Fingerprint(
        dataset=name,
        task=more.pop("task", "segmentation"),
        modality=modality,
        labels=more.pop("labels", {"0": "background", **names}),
        cases={"training": training, "validation": max(1, training // 5), "test": max(1, training // 5)},
        shape=spread(*shape),
        spacing=spread(*spacing, p10=p10),
        extent_mm=spread(*(length * mm for length, mm in zip(shape, spacing, strict=True))),
        inside=inside,
        everywhere=inside,
        zero_share=more.pop("zero_share", (0.0,) * len(modality)),
        structures=structures,
        **more,
    )


def ct(name: str, shape: Any, spacing: Any, structures: Any, training: int, window: Any) -> Fingerprint:
    return make_fingerprint(name, ("CT",), shape, spacing, structures, training, window)


DECATHLON = {
    "BrainTumour": Task(
        make_fingerprint(
            "BrainTumour",
            ("FLAIR", "T1w", "T1gd", "T2w"),
            (138, 169, 138),
            (1.0, 1.0, 1.0),
            (
                structure(1, "edema", 50, 0.015),
                structure(2, "non-enhancing tumor", 10, 0.003, pieces=3),
                structure(3, "enhancing tumour", 15, 0.004, pieces=2),
            ),
            388,
            zero_share=(0.4, 0.4, 0.4, 0.4),
        ),
        (1.0, 1.0, 1.0),
        (128, 128, 128),
        2,
    ),
    "Heart": Task(
        make_fingerprint(
            "Heart",
            ("MRI",),
            (232, 320, 115),
            (1.25, 1.25, 1.37),
            (structure(1, "left atrium", 80, 0.006, -0.05, 0.3),),
            16,
            lateral=("left atrium",),
        ),
        (1.25, 1.25, 1.37),
        (160, 192, 80),
        2,
    ),
    "Liver": Task(
        ct(
            "Liver",
            (512, 512, 432),
            (0.7676, 0.7676, 1.0),
            (structure(1, "liver", 1600, 0.03, 0.1, 1.0), structure(2, "cancer", 15, 0.0004, 0.1, 0.95, 5)),
            105,
            (99.4, 39.4, -17.0, 201.0),
        ),
        (0.7676, 0.7676, 1.0),
        (128, 128, 128),
        2,
    ),
    "Hippocampus": Task(
        make_fingerprint(
            "Hippocampus",
            ("MRI",),
            (35, 50, 36),
            (1.0, 1.0, 1.0),
            (structure(1, "anterior", 1.6, 0.025), structure(2, "posterior", 1.5, 0.024)),
            208,
        ),
        (1.0, 1.0, 1.0),
        (40, 56, 40),
        9,
    ),
    "Prostate": Task(
        make_fingerprint(
            "Prostate",
            ("T2", "ADC"),
            (319, 320, 20),
            (0.625, 0.625, 3.6),
            (structure(1, "PZ", 12, 0.006), structure(2, "TZ", 30, 0.015)),
            26,
        ),
        (0.625, 0.625, 3.6),
        (256, 320, 20),
        2,
    ),
    "Lung": Task(
        ct(
            "Lung",
            (512, 512, 252),
            (0.785, 0.785, 1.245),
            (structure(1, "cancer", 8, 0.0002, 0.1, 0.6),),
            51,
            (-158.6, 324.7, -1024.0, 325.0),
        ),
        (0.785, 0.785, 1.245),
        (160, 192, 80),
        2,
    ),
    "Pancreas": Task(
        ct(
            "Pancreas",
            (512, 512, 93),
            (0.8, 0.8, 2.5),
            (structure(1, "pancreas", 80, 0.003, -0.02, 0.4), structure(2, "cancer", 9, 0.0003, 0.0, 0.5)),
            225,
            (78.0, 75.4, -96.0, 215.0),
        ),
        (0.8, 0.8, 2.5),
        (224, 224, 40),
        2,
    ),
    "HepaticVessel": Task(
        ct(
            "HepaticVessel",
            (512, 512, 150),
            (0.798, 0.798, 1.5),
            (structure(1, "Vessel", 30, 0.001, 0.1, 1.0, 5), structure(2, "Tumour", 25, 0.0008, 0.15, 0.98, 2)),
            242,
            (104.4, 52.6, -3.0, 243.0),
        ),
        (0.798, 0.798, 1.5),
        (192, 192, 64),
        2,
    ),
    "Spleen": Task(
        ct(
            "Spleen",
            (512, 512, 187),
            (0.79, 0.79, 1.6),
            (structure(1, "spleen", 220, 0.005, -0.2, 0.0),),
            33,
            (99.3, 39.5, -41.0, 176.0),
        ),
        (0.79, 0.79, 1.6),
        (160, 192, 64),
        2,
    ),
    "Colon": Task(
        ct(
            "Colon",
            (512, 512, 150),
            (0.78, 0.78, 3.0),
            (structure(1, "colon cancer primaries", 20, 0.0004, -0.02, 0.45),),
            101,
            (62.2, 32.7, -30.0, 165.8),
        ),
        (0.78, 0.78, 3.0),
        (160, 192, 56),
        2,
    ),
}


def comparison_table(budget: Budget) -> str:
    """Return the page's table: nnU-Net's published plan and ours for each task."""
    rows = [
        "| task | spacing, mm | patch, nnU-Net | patch, planned | voxels | batch, nnU-Net | batch, planned |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, task in DECATHLON.items():
        found = choose_geometry(task.fingerprint, budget)
        ratio = math.prod(found.patch_size.value) / math.prod(task.patch)
        columns = [name, _times(found.spacing.value), _times(task.patch), _times(found.patch_size.value)]
        columns += [f"{ratio:.2f} ×", str(task.batch), str(found.batch_size.value)]
        rows.append(f"| {' | '.join(columns)} |")
    return "\n".join(rows)


def _times(values: tuple[float, ...]) -> str:
    return " × ".join(f"{value:.4g}" for value in values)
