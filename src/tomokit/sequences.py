"""Batches of volumes of different length, and labels of their windows."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import list_data_collate
from monai.transforms import MapTransform
from torch import Tensor

from tomokit.errors import TomokitError, raise_problems
from tomokit.geometry import axis_codes
from tomokit.volumes import read_header

UNKNOWN = -1
WORLD_AXES = ("LR", "PA", "IS")  # the letters of the directions along x, y and z


def collate_sequences(batch: Sequence[Mapping[str, Any]], axis: int = -1, stride: int = 1) -> dict[str, Any]:
    """Return a batch of volumes of different length, with their `lengths` (B,) and labels (B, 1 + T).

    Shorter volumes are filled up at their far end with their last slice. In a config:
    `collate_fn: {_target_: tomokit.sequences.collate_sequences, _mode_: callable, stride: 1}`.

    Args:
        batch: the cases: `image` (C, X, Y, Z); `label`, the volume's class, -1 where unknown, or no such key; and
            `slice_labels` where slices are labelled, a class for each, -1 where unknown.
        axis: of (X, Y, Z), along which the slices lie.
        stride: slices from a window to the next, as the network has it.

    Raises:
        TomokitError: when a case has not as many slice labels as slices.
    """
    dim = axis % 3 + 1
    lengths = [int(case["image"].shape[dim]) for case in batch]
    longest = max(lengths)
    windows = -(-longest // stride)
    cases = []
    for case, length in zip(batch, lengths, strict=True):
        places = torch.arange(longest).clamp(max=length - 1)
        padded = torch.as_tensor(case["image"]).index_select(dim, places)
        full = {**case, "image": padded, "lengths": length}
        slices = full.pop("slice_labels", None)
        if "label" in case:
            full["label"] = _label_vector(case, slices, length, windows, stride)
        cases.append(full)
    return dict(list_data_collate(cases))


def window_labels(slices: Tensor, stride: int) -> Tensor:
    """Return the labels (T,) of windows, each for `stride` slices, from those of the slices (S,), -1 where unknown.

    A window has the greatest class of its slices; where one is unknown and the others are 0, it is unknown too.
    """
    count = -(-len(slices) // stride)
    places = torch.arange(count * stride).clamp(max=len(slices) - 1)
    groups = slices.long()[places].view(count, stride)
    greatest = groups.amax(1)
    return torch.where((groups < 0).any(1) & (greatest <= 0), UNKNOWN, greatest)


def _label_vector(case: Mapping[str, Any], slices: Any, length: int, windows: int, stride: int) -> Tensor:
    """Return the volume's label and its windows', (1 + T,), -1 where unknown and beyond the volume.

    Raises:
        TomokitError: when there are not as many slice labels as slices.
    """
    labels = torch.full((1 + windows,), UNKNOWN)
    labels[0] = int(case["label"])
    if slices is not None:
        known = torch.as_tensor(slices).flatten()
        if len(known) != length:
            raise TomokitError(
                f"{case.get('case', 'a case')} has {len(known)} slice labels for {length} slices; give one for each "
                "slice of the preprocessed volume"
            )
        own = window_labels(known, stride)
        labels[1 : 1 + len(own)] = own
    return labels


class SplitWindowsd(MapTransform):
    """Parts what a network of windows gives, or a label of volume and windows, (…, 1 + T): the volume's (…) stays.

    Args:
        keys: the keys of outputs (classes, 1 + T) or labels (1 + T,).
        windows: whether the windows' part (…, T) is kept too, as `<key>_windows`.
    """

    def __init__(self, keys: KeysCollection, windows: bool = False) -> None:
        super().__init__(keys)
        self.windows = windows

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with each key parted."""
        result = dict(data)
        for key in self.key_iterator(result):
            whole = torch.as_tensor(result[key])
            result[key] = whole[..., 0]
            if self.windows:
                result[f"{key}_windows"] = whole[..., 1:]
        return result


def check_sequences(
    cases: Mapping[str, Sequence[Mapping[str, Any]]],
    labels: Mapping[str, str],
    axis: int = -1,
    flip_axes: Sequence[int] = (),
    parts: Sequence[str] = ("training", "validation"),
) -> None:
    """Raise one error with every case whose slice labels are not one class for each of its slices.

    Args:
        cases: `{"training": entries, …}`; an entry may have `slice_labels`, in the order of its slices in RAS.
        labels: the classes, `{"0": name, …}`.
        axis: of (x, y, z), along which the slices lie.
        flip_axes: along which an augmentation mirrors.
        parts: of `cases`, that are looked at.

    Raises:
        TomokitError: that names each case; or when the order of the slices would be turned round.
    """
    if axis % 3 in flip_axes:
        raise TomokitError(
            f"`flip_axes` {list(flip_axes)} has the axis {axis % 3} of the slices: a mirror image turns their order "
            "round, and their labels stay; leave it out"
        )
    entries = [entry for part in parts for entry in cases[part] if "slice_labels" in entry]
    problems = [problem for entry in entries for problem in _slice_problems(entry, labels, axis)]
    raise_problems("the labels of slices can't be used; correct `slice_labels` in dataset.json", problems)


def count_slices(path: str, axis: int = -1) -> int:
    """Return how many slices a file has along an axis of (x, y, z) once it is turned to RAS.

    Raises:
        TomokitError: when its header can't be read.
    """
    header = read_header(path)
    own = [place for place, code in enumerate(axis_codes(header.affine)) if code in WORLD_AXES[axis % 3]]
    return int(header.shape[own[0]])


def _slice_problems(entry: Mapping[str, Any], labels: Mapping[str, str], axis: int) -> list[str]:
    """Return what is wrong with the slice labels of one case."""
    values, image = entry["slice_labels"], entry["image"]
    count = count_slices(image if isinstance(image, str) else image[0], axis)
    if not isinstance(values, list) or len(values) != count:
        got = f"{len(values)} of them" if isinstance(values, list) else repr(values)
        return [f"{entry['case']}: must list a class for each of {count} slices, -1 where unknown; got {got}"]
    known = [UNKNOWN, *map(int, labels)]
    wrong = [value for value in values if isinstance(value, bool) or value not in known]
    return [f"{entry['case']}: a slice has the class {wrong[0]!r}, known are {known}"] if wrong else []
