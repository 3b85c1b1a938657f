"""Which scan is registered with which: others of a set, the next one, or the two scans of an entry.

An entry whose `image` is one file is a scan that is paired with those of other entries. An entry whose `image` lists
two files is a pair by itself, the fixed scan first: of two times, or of two modalities.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch.utils.data import Dataset

from tomokit.errors import TomokitError, raise_problems

PARTNERS = ("random", "next")
SIDES = ("fixed", "moving")
LABELS = {"label", "truth"}  # a label map's file; evaluation calls it `truth`, and reads it late
Entry = Mapping[str, Any]


def list_scans(entries: Sequence[Entry], labelled: bool = True) -> list[dict[str, Any]]:
    """Return an entry `{"case", "patient", "image"}` for each scan; the two of a pair follow each other.

    The scans of a pair also have `role`, "fixed" or "moving"; others their `label`, or `truth`, where there is one.

    Args:
        entries: of a data set.
        labelled: whether label maps are wanted.

    Raises:
        TomokitError: when entries of one scan and of two are mixed, one lists more than two, or one lacks its label
            map.
    """
    pairs = [not isinstance(entry["image"], str) for entry in entries]
    if any(pairs) and not all(pairs):
        raise TomokitError(
            f"{entries[pairs.index(True)]['case']} lists two scans, {entries[pairs.index(False)]['case']} is one; "
            "give all entries one scan, to be paired with others, or all of them two"
        )
    problems = [
        f"{entry['case']} lists {len(entry['image'])} scans"
        for entry, pair in zip(entries, pairs, strict=True)
        if pair and (len(entry["image"]) != len(SIDES) or None in entry["image"])
    ]
    lacking = [not LABELS & entry.keys() or pair for entry, pair in zip(entries, pairs, strict=True)]
    problems += [
        f"{entries[place]['case']} has no label map" for place, none in enumerate(lacking) if labelled and none
    ]
    raise_problems("these entries can't be registered; correct dataset.json, or add modes/unlabelled.yaml", problems)
    return [scan for entry in entries for scan in _scans_of(entry, labelled)]


def _scans_of(entry: Entry, labelled: bool) -> list[dict[str, Any]]:
    """Return the scans of an entry, each as an entry of its own."""
    common = {"case": entry["case"], "patient": entry.get("patient", entry["case"])}
    if isinstance(entry["image"], str):
        return [{**common, "image": entry["image"], **{key: entry[key] for key in entry if labelled and key in LABELS}}]
    return [{**common, "image": path, "role": role} for path, role in zip(entry["image"], SIDES, strict=True)]


def neighbouring_images(entries: Sequence[Entry]) -> list[list[str]]:
    """Return the files of pairs, `[[fixed, moving], …]`: each entry with the next one, or the two scans of each."""
    scans = list_scans(entries, labelled=False)
    step = 2 if scans and "role" in scans[0] else 1
    return [[scans[place]["image"], scans[place + 1]["image"]] for place in range(0, len(scans) - 1, step)]


class AddImageMaskd(MapTransform):
    """Adds a mask of ones on each image's grid, so that what is padded later can be told from what was scanned.

    Args:
        keys: the images' keys.
        mask_key: the key of the mask (1, X, Y, Z).
    """

    def __init__(self, keys: KeysCollection, mask_key: str = "mask") -> None:
        super().__init__(keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the mask."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[self.mask_key] = torch.ones_like(result[key][:1])
        return result


class PairedScans(Dataset):
    """Pairs of scans, each loaded by itself: the keys of a scan with `fixed_` or `moving_` before them.

    The item of a pair also has `case` and `patient`, the fixed scan's, and `moving_case`.

    Args:
        data: a data set of scans, as MONAI's: its `data` has an entry for each, as `list_scans` returns them.
        partner: "random": each scan once as the fixed one, with another one drawn from torch's generator; "next": each
            with the one behind it. Scans that are pairs already stay those.
        most: at most so many pairs; None for all.

    Raises:
        TomokitError: when there is no such way to pair, or one scan alone.
    """

    def __init__(self, data: Any, partner: str = "random", most: int | None = None) -> None:
        if partner not in PARTNERS:
            raise TomokitError(f"`partner` must be one of {', '.join(PARTNERS)}, got {partner!r}")
        self.data, self.partner, self.most = data, partner, most
        scans = getattr(data, "data", data)
        self.own_pairs = bool(len(scans)) and "role" in scans[0]
        if len(scans) == 1:
            raise TomokitError(
                f"{scans[0]['case']} has no other scan to be registered with: training, validation and test need two "
                "cases each; give `split` a file that has them"
            )

    def __len__(self) -> int:
        """Return the number of pairs."""
        count = len(self.data)
        count = count // 2 if self.own_pairs else count if self.partner == "random" else max(count - 1, 0)
        return count if self.most is None else min(count, self.most)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return a pair."""
        if number >= len(self):
            raise IndexError(number)
        places = self._places(number)
        fixed, moving = (self.data[place] for place in places)
        item = {f"{side}_{key}": scan[key] for side, scan in zip(SIDES, (fixed, moving), strict=True) for key in scan}
        told = {"case": item.pop("fixed_case"), "patient": item.pop("fixed_patient")}
        kept = {key: item[key] for key in item if key not in ("moving_patient", "fixed_role", "moving_role")}
        return {**told, **kept}

    def _places(self, number: int) -> tuple[int, int]:
        """Return which scan is the fixed one of a pair, and which the moving one."""
        if self.own_pairs:
            return 2 * number, 2 * number + 1
        if self.partner == "next":
            return number, number + 1
        return number, (number + 1 + int(torch.randint(len(self.data) - 1, ()))) % len(self.data)
