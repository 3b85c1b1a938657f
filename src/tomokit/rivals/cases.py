"""What the rivals share: a case's voxels, name and class, and a classifier's probabilities as a table."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from tomokit import volumes
from tomokit.errors import TomokitError

QUANTILES_PER_CASE = 1001

Volume = NDArray[Any]
Entry = Mapping[str, Any]


def normalise_intensity(image: Volume) -> NDArray[np.float32]:
    """Return `image`, of any shape, with its own 1st percentile at 0 and its 99th at 1, unclipped."""
    low, high = np.percentile(image, (1, 99))
    return ((image - low) / max(float(high - low), 1e-6)).astype(np.float32)


def identify(entry: Entry) -> dict[str, Any]:
    """Return a case's name and patient; a case without a patient counts as one."""
    return {"case": entry["case"], "patient": entry.get("patient", entry["case"])}


def first_path(path: str | Path | Sequence[str | Path | None]) -> str | Path:
    """Return the path of an image, of several modalities that of the first one that is there."""
    return path if isinstance(path, str | Path) else next(own for own in path if own is not None)


def load(path: str | Path | Sequence[str | Path]) -> Volume:
    """Return a file's voxels; of several modalities the first one's."""
    return np.asanyarray(nib.squeeze_image(nib.load(first_path(path))).dataobj)


def read_scan(path: str | Path | Sequence[str | Path | None]) -> volumes.Volume:
    """Return voxels (X, Y, Z) and affine: of several modalities or channels the first, of a flat image one slice."""
    array, affine = volumes.read_volume(first_path(path))
    array = array[..., 0] if array.ndim == 4 else array
    return volumes.Volume(array.reshape(*array.shape, *[1] * (3 - array.ndim)), affine)


def class_names(classes: Mapping[str, str], entries: Iterable[Entry]) -> dict[int, str]:
    """Return the classes by number, from dataset.json's `labels`, once each entry's label is known to be one of them.

    Raises:
        TomokitError: when a label is no class.
    """
    names = {int(value): name for value, name in classes.items()}
    for entry in entries:
        if entry["label"] not in list(names):  # a list, since a label may be unhashable
            known = ", ".join(str(value) for value in names)
            raise TomokitError(f"{entry['case']} has the label {entry['label']!r}; the classes are {known}")
    return names


def training_targets(entries: Iterable[Entry], names: Mapping[int, str]) -> NDArray[np.int64]:
    """Return the class of each training case (N,).

    Raises:
        TomokitError: when they are all of one class.
    """
    targets = np.array([int(entry["label"]) for entry in entries])
    if len(np.unique(targets)) < 2:
        seen = ", ".join(names[value] for value in np.unique(targets).tolist()) or "none"
        raise TomokitError(f"a classifier needs training cases of at least two classes, got only: {seen}")
    return targets


def probability_rows(
    model: Any, entries: Sequence[Entry], features: Iterable[NDArray[np.float64]], names: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Return a row `{"case", "patient", "truth", "p_<class>" …}` per case; a class the model never saw gets 0.

    Args:
        model: a fitted classifier of scikit-learn's.
        entries: the cases.
        features: each case's features (F,).
        names: the classes by number.
    """
    rows = []
    for entry, values in zip(entries, features, strict=True):
        probabilities = model.predict_proba(values[None])[0].tolist()
        known_classes = dict(zip(model.classes_.tolist(), probabilities, strict=True))
        scores = {f"p_{name}": known_classes.get(value, 0.0) for value, name in names.items()}
        rows.append(identify(entry) | {"truth": names[int(entry["label"])]} | scores)
    return rows
