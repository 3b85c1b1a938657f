"""Several modalities of a case, each a file on a grid of its own or absent, brought to one grid."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import LoadImage, MapTransform, Orientation, ResampleToMatch, Spacing

from tomokit.errors import TomokitError
from tomokit.reading import ScanReader


class LoadModalitiesd(MapTransform):
    """Loads each modality of a case by itself and brings all to one grid: an image (M, X, Y, Z), and which are there.

    The grid is that of the first modality that is there, turned to RAS and brought to `spacing`; the others are
    interpolated onto it once, in a straight line between voxels, and beyond their own edge keep their last value. An
    absent modality, None in the list of paths, is 0 everywhere. The key `presence` (M,), float32, has 1 for each
    modality that is there and 0 for the others.

    Args:
        keys: the key of the paths, one for each modality in their order.
        spacing: the grid's voxel size in mm along x, y, z.
        count: the number of modalities M.

    Raises:
        TomokitError: when there are several keys, or a case has more or fewer modalities, none at all, or a file with
            several channels.
    """

    def __init__(self, keys: KeysCollection, spacing: Sequence[float], count: int) -> None:
        super().__init__(keys)
        if len(self.keys) != 1:
            raise TomokitError(f"the modalities of a case make one image, got the keys {list(self.keys)}; give one key")
        self.count = count
        self.load = LoadImage(reader=ScanReader(), image_only=True, ensure_channel_first=True)
        self.turn = Orientation(axcodes="RAS", labels=None)
        self.space = Spacing(pixdim=spacing, mode="bilinear", padding_mode="border")
        self.match = ResampleToMatch(mode="bilinear", padding_mode="border")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the image, a `MetaTensor` float32, in place of its paths, and with `presence`."""
        result = dict(data)
        for key in self.key_iterator(result):
            paths = [result[key]] if isinstance(result[key], str) else list(result[key])
            present = [float(path is not None) for path in paths]
            name = data.get("case", key)
            if len(paths) != self.count or not any(present):
                raise TomokitError(
                    f"{name} has {len(paths)} modalities, {sum(present):g} of them there; list {self.count} paths "
                    "under `image`, null for an absent one, and at least one that is there"
                )
            result[key] = self._join(paths, str(name))
            result["presence"] = torch.tensor(present)
        return result

    def _join(self, paths: Sequence[str | None], name: str) -> MetaTensor:
        """Return the modalities on one grid, (M, X, Y, Z)."""
        images: list[torch.Tensor | None] = []
        grid: MetaTensor | None = None
        for path in paths:
            if path is None:
                images.append(None)
                continue
            image = self.turn(self.load(path))
            if image.shape[0] != 1:
                raise TomokitError(f"{name}: {path} holds {image.shape[0]} channels; store each modality as one volume")
            image = self.space(image) if grid is None else self.match(image, grid)
            grid = image if grid is None else grid
            images.append(image.as_tensor()[0].float())
        assert grid is not None
        blank = torch.zeros(grid.shape[1:])
        return MetaTensor(torch.stack([blank if image is None else image for image in images]), affine=grid.affine)
