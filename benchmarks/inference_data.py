"""The scans of the inference benchmark: synthetic bodies on a CT's grid, and the sets its networks are trained on.

A body is a column of trunks on top of each other: the abdomen and pelvis of the public CT `reference_ct_mr` and a
phantom's trunk, then both again upside down for as long as the scan asks. It lies on a table, in air, in a scanner's
noise, as int16 in HU with an LPS affine; the same bytes whenever it is made. So the structures that a network has
learnt are there to be found, in a field of view and a file as a hospital's.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tomokit.catalogue import get_dataset
from tomokit.datasets import data_root, read_sections
from tomokit.files import write_json
from tomokit.phantoms import make_segmentation_case
from tomokit.phantoms.scanner import correlated_noise
from tomokit.phantoms.sets import save

Array = NDArray[Any]
SLICE_SHAPE, SPACING_MM = (512, 512), (0.8, 0.8, 1.5)
GRID_MM = 1.5  # of the networks
COLUMN_MM = 3.0  # what the trunks are put together at: the public CT's own
PHANTOM_SIZE = 144  # voxels of 2.5 mm: a trunk about as wide as the public CT's
PHANTOM_FROM = 0.25  # of the phantom's height: below there are only fat and bowel
AIR_HU, TABLE_HU, NOISE_HU = -1000.0, -250.0, 12.0
TABLE_MM = (-158.0, 170.0, 5.0)  # its lowest line, from the middle to the back; half its width; its thickness
CHUNK = 40  # slices that are made at once
ISOCENTRE_MM = (3.2, -171.0, -742.5)
LIVER, SPLEEN = 1, 2
PUBLIC = {5: LIVER, 1: SPLEEN}  # of the public CT's label map
PHANTOM = {1: LIVER, 2: SPLEEN, 3: LIVER}  # of the phantoms'; a lesion is part of the liver
# training cases: the public CT in noise of so many kinds, since an epoch takes one patch of each case, and phantoms,
# the last of which is left out
SCANS, PHANTOMS = 7, 2


# ---------------------------------------------------------------------------------------------------- bodies


def body_path(slices: int) -> Path:
    """Return the file of the body with so many slices, made now unless it is there."""
    path = data_root() / "inference" / f"ct{slices}.nii.gz"
    if not path.is_file():
        print(f"making {path}", flush=True)
        write_body(path, make_column([_public_trunk(), _phantom_trunk()]), (*SLICE_SHAPE, slices), SPACING_MM)
    return path


def make_column(trunks: Sequence[Array]) -> Array:
    """Return trunks (X, Y, Z) as one, the first at the bottom; narrower ones stand in the middle of air."""
    widths = np.max([trunk.shape[:2] for trunk in trunks], axis=0)
    padded = []
    for trunk in trunks:
        lack = widths - trunk.shape[:2]
        ends = [(int(gap) // 2, int(gap) - int(gap) // 2) for gap in lack]
        padded.append(np.pad(trunk, [*ends, (0, 0)], constant_values=AIR_HU))
    return np.concatenate(padded, axis=2).astype(np.float32)


def write_body(path: Path, column: Array, shape: Sequence[int], spacing: Sequence[float]) -> None:
    """Write a body (RAS, `COLUMN_MM`) as a scan in LPS with table, air and noise, of that shape and spacing in mm."""
    while column.shape[2] * COLUMN_MM < shape[2] * spacing[2]:
        column = np.concatenate([column, column[..., ::-1]], axis=2)
    places = [(np.arange(count) - (count - 1) / 2) * edge for count, edge in zip(shape, spacing, strict=True)]
    across, deep = (_weights(places[axis], column.shape[axis]) for axis in (0, 1))
    middle = (column.shape[2] - 1) / 2 * COLUMN_MM
    up = places[2] - places[2][0] - middle  # the scan begins at the column's foot
    plane = np.einsum("ix,jy,xyz->ijz", across, deep, column - AIR_HU, optimize=True)  # air is 0 beyond the column
    table = _table(places[0], places[1])[..., None]
    scan = np.empty(tuple(shape), np.int16)
    rng = np.random.default_rng(shape[2])
    for first in range(0, shape[2], CHUNK):
        part = slice(first, first + CHUNK)
        volume = AIR_HU + plane @ _weights(up[part], column.shape[2]).T
        volume = np.where(table, np.maximum(volume, TABLE_HU), volume)
        volume += NOISE_HU * correlated_noise(rng, volume.shape)
        scan[..., part] = np.clip(np.rint(volume), -1024, 3071)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = ISOCENTRE_MM - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    save(path, scan[::-1, ::-1], affine)


def _weights(places_mm: Array, count: int) -> NDArray[np.float32]:
    """Return the weights (places, count) that interpolate linearly along an axis of the column; 0 beyond its ends."""
    nodes = (np.arange(count) - (count - 1) / 2) * COLUMN_MM
    return np.maximum(0, 1 - np.abs(places_mm[:, None] - nodes) / COLUMN_MM).astype(np.float32)


def _table(x_mm: Array, y_mm: Array) -> NDArray[np.bool_]:
    """Return where the table is in a slice (X, Y): a shallow trough of a thin shell."""
    lowest, half, thickness = TABLE_MM
    shell = lowest + 30 * (x_mm[:, None] / half) ** 4
    return (np.abs(y_mm - shell) < thickness / 2) & (np.abs(x_mm[:, None]) < half)


def _public_trunk() -> Array:
    """Return the public CT in HU (X, Y, Z), RAS, 3 mm."""
    image, _ = _public_case()
    return np.asarray(nibabel.as_closest_canonical(nibabel.load(image)).dataobj, np.float32)


def _public_case() -> tuple[Path, Path]:
    """Return the files of the public CT and of its label map."""
    folder = get_dataset("reference_ct_mr", source=os.environ.get("TOMOKIT_MIRROR"))
    return folder / "imagesTr" / "trunk.nii.gz", folder / "labelsTr" / "trunk.nii.gz"


def _phantom_trunk() -> Array:
    """Return a phantom's trunk in HU (X, Y, Z), RAS, 3 mm."""
    case = make_segmentation_case("CT", PHANTOM_SIZE, seed=6, index=5)
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(case.image, case.affine))
    volume = ndimage.zoom(image.get_fdata(dtype=np.float32), np.array(image.header.get_zooms()) / COLUMN_MM, order=1)
    return volume[..., round(PHANTOM_FROM * volume.shape[2]) :]


def cut_middle(source: Path, path: Path, nodes: Sequence[int]) -> Path:
    """Write the middle of a scan, of which resampling to `GRID_MM` makes so many voxels along each axis; its path."""
    image = nibabel.load(source)
    spacing = image.header.get_zooms()
    wanted = [round((count - 1) * GRID_MM / edge) + 1 for count, edge in zip(nodes, spacing, strict=True)]
    starts = [(length - count) // 2 for length, count in zip(image.shape, wanted, strict=True)]
    parts = tuple(slice(start, start + count) for start, count in zip(starts, wanted, strict=True))
    nibabel.save(image.slicer[parts], path)
    return path


def hippocampus_volumes(count: int) -> list[Path]:
    """Return the files of the Decathlon's first hippocampus volumes."""
    folder = get_dataset("hippocampus", source=os.environ.get("TOMOKIT_MIRROR"))
    return [Path(entry["image"]) for entry in read_sections(folder)["training"][:count]]


# -------------------------------------------------------------------------------------------- training sets


def training_set(classes: int) -> Path:
    """Return the folder of the set for a network of so many classes, made now unless it is there."""
    folder = data_root() / "inference" / f"training-{classes}"
    if not (folder / "dataset.json").is_file():
        image, label = (nibabel.as_closest_canonical(nibabel.load(path)) for path in _public_case())
        trunk = np.asarray(image.dataobj, np.float32), np.asarray(label.dataobj).astype(np.int32)
        write_training_set(folder, classes, (*trunk, image.affine), PHANTOM_SIZE)
    return folder


def write_training_set(folder: Path, classes: int, public: tuple[Array, Array, Array], phantom_size: int) -> None:
    """Write a set of so many classes: the public CT (image, label map, affine) in noise, and phantoms.

    A case gives a patch in each epoch, so the one real scan stands there several times.
    """
    image, labels, affine = public
    structures = choose_structures(_relabel(labels, PUBLIC), classes - 1)
    cases = []
    for number in range(SCANS):
        noise = NOISE_HU * correlated_noise(np.random.default_rng(number), image.shape)
        cases.append((f"trunk_{number}", np.rint(image + noise), structures, affine))
    for number in range(PHANTOMS):
        case = make_segmentation_case("CT", phantom_size, seed=7, index=number)
        alike = sum(value * (case.label == known) for known, value in PHANTOM.items())
        cases.append((f"phantom_{number}", case.image, alike, case.affine))
    entries = []
    for name, volume, truth, place in cases:
        entry = {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz", "patient": name.split("_")[0]}
        save(folder / entry["image"], volume.astype(np.int16), place)
        save(folder / entry["label"], truth.astype(np.uint8), place)
        entries.append(entry)
    names = [name for name, *_ in cases]
    entries[-1]["patient"] = "left out"
    fold = {"training": names[:-1], "validation": [], "test": names[-1:]}
    write_json(folder / "splits.json", {"folds": [fold]})
    header = {"name": folder.name, "modality": {"0": "CT"}, "labels": label_names(classes)}
    write_json(folder / "dataset.json", header | {"training": entries})


def label_names(classes: int) -> dict[str, str]:
    """Return the label map of a network of so many classes."""
    named = {0: "background", LIVER: "liver", SPLEEN: "spleen"}
    return {str(value): named.get(value, f"structure {value}") for value in range(classes)}


def choose_structures(labels: Array, count: int) -> Array:
    """Return a label map of so many structures, 1 to `count`: merged with the nearest one, smallest first, or halved.

    Liver and spleen stay as they are; two structures are those alone.
    """
    if count == 2:
        return np.where(labels <= SPLEEN, labels, 0)
    labels = labels.copy()
    while (known := np.unique(labels[labels > SPLEEN])).size > count - 2:
        centres = np.array(ndimage.center_of_mass(labels > 0, labels, known))
        number = np.bincount(labels.ravel())[known].argmin()
        away = np.linalg.norm(centres - centres[number], axis=1)
        away[number] = np.inf
        labels[labels == known[number]] = known[away.argmin()]
    while (known := np.unique(labels[labels > SPLEEN])).size < count - 2:
        largest = known[np.bincount(labels.ravel())[known].argmax()]
        places = np.argwhere(labels == largest)
        along = places[:, np.ptp(places, axis=0).argmax()]
        labels[tuple(places[along > np.median(along)].T)] = labels.max() + 1
    return _relabel(labels, {LIVER: LIVER, SPLEEN: SPLEEN})


def _relabel(labels: Array, first: dict[int, int]) -> NDArray[np.int32]:
    """Return labels as 1, 2, … without gaps: those of `first` as it says, the others in their order."""
    rest = [int(value) for value in np.unique(labels) if value and value not in first]
    table = np.zeros(int(labels.max()) + 1, np.int32)
    for value, new in [*first.items(), *zip(rest, range(len(first) + 1, len(first) + len(rest) + 1), strict=True)]:
        if value < len(table):
            table[value] = new
    return table[labels]
