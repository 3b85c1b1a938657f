"""What a label map tells beyond its values: regions that overlap, voxels nobody labelled, classes nobody looked for.

A training target stays one label map (1, X, Y, Z). Voxels of the ignore label are unknown. A background voxel of a
case in which some classes were not annotated holds a negative code, minus the sum of 2**class over those classes:
it may be background or any of them.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from tomokit.errors import TomokitError

CODED_CLASSES = 24  # a float32 holds whole numbers below 2**24 exactly
Regions = Mapping[str, Sequence[int]]


def region_values(regions: Regions) -> list[int]:
    """Return the label that each region paints: the one of its labels that no later region has.

    Regions are painted in their order, later ones over earlier ones, which gives the label map back.

    Raises:
        TomokitError: when a region has no such label, or several of which none can be told.
    """
    names = list(regions)
    values = []
    for number, name in enumerate(names):
        later = {label for other in names[number + 1 :] for label in regions[other]}
        own = sorted(set(regions[name]) - later)
        if len(own) != 1:
            raise TomokitError(
                f"region {name!r} must have exactly one label that no later region has, it has {own}; order `regions` "
                "from the outermost to the innermost, and give each label a region of its own"
            )
        values += own
    return values


def region_table(regions: Regions) -> Tensor:
    """Return which label lies in which region: (regions, labels), bool; the last column is for greater labels.

    Raises:
        TomokitError: when there is no region, or a region holds no label or one below 1.
    """
    for name, labels in regions.items():
        if not labels or min(labels) < 1:
            raise TomokitError(f"region {name!r} must list labels from 1 on, got {list(labels)}")
    if not regions:
        raise TomokitError("`regions` is empty; write name: [labels], or leave the layer of regions out")
    table = torch.zeros(len(regions), max(map(max, regions.values())) + 2, dtype=torch.bool)
    for row, labels in zip(table, regions.values(), strict=True):
        row[list(labels)] = True
    return table


def unlabelled_classes(label_maps: Tensor, num_classes: int) -> Tensor:
    """Return which classes were not annotated in each case: (B, num_classes), bool, from label maps (B, 1, X, Y, Z)."""
    codes = (-label_maps.flatten(1).amin(1).long()).clamp(min=0)  # an unsigned type has no negative
    bits = torch.arange(num_classes, device=codes.device)
    return (codes[:, None] >> bits & 1).bool()


class MarkUnlabelledd(MapTransform):
    """Writes into a label map which classes were not annotated in its case, from the case's list `labelled`.

    Its background voxels get the code of this module; a case without a list is annotated for all classes.
    The list itself is dropped: lists of several lengths make no batch.

    Args:
        keys: the keys of the label maps (1, X, Y, Z).
        num_classes: the number of classes, background included; at most 24.
        labelled_key: the key of the list of annotated classes.

    Raises:
        TomokitError: when there are too many classes, or a list does not fit the classes or its label map.
    """

    def __init__(self, keys: KeysCollection, num_classes: int, labelled_key: str = "labelled") -> None:
        super().__init__(keys)
        if num_classes > CODED_CLASSES:
            raise TomokitError(f"partly labelled cases can have at most {CODED_CLASSES} classes, got {num_classes}")
        self.classes = set(range(1, num_classes))
        self.labelled_key = labelled_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the label maps coded, float32."""
        result = dict(data)
        labelled = set(result.pop(self.labelled_key, self.classes)) - {0}
        if not labelled or labelled - self.classes:
            raise TomokitError(
                f"`{self.labelled_key}` of {_name(data)} must list some of the labels {sorted(self.classes)}, "
                f"got {sorted(labelled)}; correct the entry in dataset.json"
            )
        missing = self.classes - labelled
        for key in self.key_iterator(result):
            label_map = result[key].float()
            if missing and torch.isin(label_map, label_map.new_tensor(sorted(missing))).any():
                raise TomokitError(
                    f"the label map of {_name(data)} holds one of the labels {sorted(missing)}, which its "
                    f"`{self.labelled_key}` {sorted(labelled)} leaves out; correct the entry in dataset.json"
                )
            code = -float(sum(2**label for label in missing))
            result[key] = torch.where(label_map == 0, code, label_map) if missing else label_map
        return result


class HideUnknownd(MapTransform):
    """Sets to background, in prediction and truth, what the truth does not know, so that no metric counts it.

    These are the voxels of the ignore label, and predicted classes that nobody annotated in the case.

    Args:
        keys: the keys of the predicted label maps (1, X, Y, Z).
        num_classes: the number of classes, background included.
        label_key: the key of the true label map.
        ignore_label: the label of voxels that nobody labelled; None where there are none.
    """

    def __init__(
        self, keys: KeysCollection, num_classes: int, label_key: str = "label", ignore_label: int | None = None
    ) -> None:
        super().__init__(keys)
        self.num_classes = num_classes
        self.label_key = label_key
        self.ignore_label = ignore_label

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with what is unknown set to 0 in the predictions and the truth."""
        result = dict(data)
        truth = result[self.label_key]
        ignored = _ignored(truth, self.ignore_label)
        missing = unlabelled_classes(truth[None], self.num_classes)[0]
        for key in self.key_iterator(result):
            unknown = ignored | missing[result[key].long()]
            result[key] = result[key].masked_fill(unknown, 0)
        result[self.label_key] = truth.masked_fill(ignored | (truth < 0), 0)
        return result


class RegionsFromLabelsd(MapTransform):
    """Turns a true label map into one channel of 0 and 1 per region, and hides what it does not know.

    MONAI's `ConvertToMultiChannelBasedOnBratsClassesd` knows the regions of BraTS alone.

    Args:
        keys: the keys of the true label maps (1, X, Y, Z).
        regions: `{name: [labels], …}`; regions may overlap.
        pred_key: the key of the predicted regions (regions, X, Y, Z), where they are there: voxels of the ignore
            label, and regions with a label that nobody annotated in the case, become 0 in both.
        ignore_label: the label of voxels that nobody labelled; None where there are none.
    """

    def __init__(
        self, keys: KeysCollection, regions: Regions, pred_key: str | None = None, ignore_label: int | None = None
    ) -> None:
        super().__init__(keys)
        self.table = region_table(regions)
        self.pred_key = pred_key
        self.ignore_label = ignore_label

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with each label map as (regions, X, Y, Z), float32."""
        result = dict(data)
        for key in self.key_iterator(result):
            labels = result[key]
            table = self.table.to(labels.device)
            missing = unlabelled_classes(labels[None], table.shape[1])[0]
            unknown = (table & missing).any(1).view(-1, *[1] * (labels.ndim - 1)) | _ignored(labels, self.ignore_label)
            result[key] = regions_of(labels[None], table)[0].masked_fill(unknown, 0)
            if self.pred_key is not None:
                result[self.pred_key] = result[self.pred_key].masked_fill(unknown, 0)
        return result


def regions_of(label_maps: Tensor, table: Tensor) -> Tensor:
    """Return label maps (B, 1, X, Y, Z) as regions (B, regions, X, Y, Z) of 0 and 1, float32; unknown labels are 0."""
    labels = label_maps[:, 0].long().clamp(0, table.shape[1] - 1)
    return table.float()[:, labels].movedim(0, 1)


def _ignored(label_map: Tensor, ignore_label: int | None) -> Tensor:
    """Return where a label map holds the ignore label, bool."""
    return torch.zeros_like(label_map, dtype=torch.bool) if ignore_label is None else label_map == ignore_label


def _name(data: Mapping[Hashable, Any]) -> str:
    """Return the case's name, for a message."""
    return str(data.get("case", "a case"))
