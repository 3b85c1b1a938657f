"""What engines do besides the network's pass where they register scans: pairs, scores, files."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import PrepareBatch as MonaiPrepareBatch
from numpy.typing import NDArray
from torch import Tensor

from tomokit.engines.evaluation import PICTURE, Entries, check_test_cases, tell_checkpoint, tell_scores, write_scores
from tomokit.engines.hardware import plain, to_channels_last
from tomokit.engines.pairs import pairs_of
from tomokit.engines.progress import ProgressBar
from tomokit.engines.registration_pictures import draw_registrations
from tomokit.errors import TomokitError
from tomokit.files import replacing
from tomokit.inference import first_image, list_inputs, write_on_source_grid
from tomokit.losses import join_target, split_target
from tomokit.losses.targets import PARTS
from tomokit.pictures import pick_cases
from tomokit.reading import read_scan
from tomokit.registration import (
    displacement_mm,
    field_transform,
    move_volume,
    score_registration,
    summarise_registration,
)
from tomokit.registration.displacements import cover_grid, field_image
from tomokit.registration.pairing import SIDES
from tomokit.rivals import normalise_intensity
from tomokit.rivals.registration import RIVALS, register
from tomokit.runs import is_main_process

logger = logging.getLogger(__name__)

TASK = "registration"  # in metrics.json
NONE = "none"  # the rival that leaves the centres of both scans on each other
Field = NDArray[np.float32]


class PreparePairs(MonaiPrepareBatch):
    """Gives a batch's pairs, the fixed scan's channels first, and their target (`tomokit.losses.join_target`).

    Args:
        scans: a transform of all scans of a batch, each by itself, `{"image": (2·B, C, X, Y[, Z]), "mask": …}`, or
            None.
        pairs: a transform of both scans of a pair alike, `{"pair": target}`, or None.
    """

    def __init__(
        self,
        scans: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
        pairs: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> None:
        self.scans, self.pairs = scans, pairs

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Return `(image, target)`: (B, 2·C, X, Y[, Z]) and (B, 2·(C + 1 or 2), X, Y[, Z])."""
        sides = [
            {part: plain(batchdata[f"{side}_{part}"]) for part in PARTS if f"{side}_{part}" in batchdata}
            for side in SIDES
        ]
        batch = {part: torch.cat([side[part] for side in sides]) for part in sides[0]}
        batch = {part: own.to(device, non_blocking=non_blocking, **kwargs) for part, own in batch.items()}
        if self.scans is not None:
            batch = self.scans(batch)
        target = join_target(batch)
        if self.pairs is not None:
            target = self.pairs({"pair": target})["pair"]
        fixed, moving = split_target(target, "label" in batch)
        return to_channels_last(torch.cat([fixed.image, moving.image], 1)), target


def list_registrations(inputs: Any) -> list[dict[str, Any]]:
    """Return an entry `{"case", "patient", "image", "role"}` for each scan of each pair, the fixed one first.

    Args:
        inputs: pairs of files, `[[fixed, moving], …]`, on any grids; one pair, `[fixed, moving]`; or a folder with
            files `<case>_0000.nii.gz` (fixed) and `<case>_0001.nii.gz` (moving).

    Raises:
        TomokitError: when a file is absent or no scan, or scans are no pairs or of one name.
    """
    return [
        {"case": entry["case"], "patient": entry["case"], "image": path, "role": role}
        for entry in list_inputs(pairs_of(inputs))
        for path, role in zip(entry["image"], SIDES, strict=True)
    ]


class Pair(NamedTuple):
    """Two scans, their files, and how the network's grid lies in both.

    Attributes:
        names: `case` (the fixed scan's), `moving`, `patient`.
        files: the fixed and the moving scan's.
        truths: their label maps' files, or None.
        grids: (4, 4) from the network's grid to each scan's world.
        network_shape: of the network's grid.
        shape: of the fixed scan's own grid.
        affine: of the fixed scan's own grid.
    """

    names: dict[str, str]
    files: tuple[str, str]
    truths: tuple[str, str] | None
    grids: tuple[NDArray[np.float64], NDArray[np.float64]]
    network_shape: tuple[int, ...]
    shape: tuple[int, ...]
    affine: NDArray[np.float64]

    def field(self, voxels: Any) -> Field:
        """Return a network's displacement (3, X, Y, Z) in mm (RAS) on the fixed scan's own grid."""
        return displacement_mm(voxels, *self.grids, self.affine, self.shape)

    def still(self) -> Field:
        """Return the displacement in mm that lays the middle of the moving scan on that of the fixed one."""
        return self.field(np.zeros((3, *self.network_shape), np.float32))


def find_pair(item: Mapping[str, Any]) -> Pair:
    """Return the pair of a decollated item of `PairedScans`, whose images are MONAI's, with their affines."""
    images = [item[f"{side}_image"] for side in SIDES]
    meta = images[0].meta
    truths = (item["fixed_truth"], item["moving_truth"]) if "fixed_truth" in item else None
    return Pair(
        {"case": item["case"], "moving": item["moving_case"], "patient": item["patient"]},
        (first_image(meta["filename_or_obj"]), first_image(images[1].meta["filename_or_obj"])),
        truths,
        tuple(np.asarray(image.affine, float) for image in images),  # type: ignore[arg-type]  # of two
        tuple(images[0].shape[1:]),
        tuple(int(size) for size in np.asarray(meta["spatial_shape"]).ravel()),
        np.asarray(meta["original_affine"], float).reshape(4, 4),
    )


def attach_registration_files(evaluator: Any, output_dir: str | Path) -> None:
    """Write of each pair the moved volume, the displacement and the transform into `output_dir`.

    `<case>_moved.nii.gz` is the moving scan on the fixed scan's grid; `<case>_displacement.nii.gz` has vectors in mm on
    that grid, in ITK's world (LPS); `<case>_transform.h5` is SimpleITK's transform.

    Args:
        evaluator: its output holds `pred` (3, X, Y, Z) in voxels of the network's grid, its batch items of
            `PairedScans`.
        output_dir: the folder to write to.

    Raises:
        TomokitError: when the folder holds an input.
    """
    for scan in evaluator.data_loader.dataset.data.data:
        if Path(scan["image"]).parent.resolve() == Path(output_dir).resolve():
            name = Path(scan["image"]).name
            raise TomokitError(f"output_dir {output_dir} holds the input {name}; give another `output_dir`")

    def write(engine: Any) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            write_registration(find_pair(item), as_array(output["pred"]), output_dir)

    evaluator.network.eval()
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, write)
    ProgressBar("register", "pair").attach(evaluator)
    evaluator.add_event_handler(Events.COMPLETED, lambda _: print(f"registrations: {output_dir}", flush=True))


def as_array(voxels: Any) -> Field:
    """Return a displacement as an array."""
    return np.asarray(torch.as_tensor(voxels).detach().cpu(), np.float32)


def write_registration(pair: Pair, voxels: Field, output_dir: str | Path) -> None:
    """Write the files of one pair, as `attach_registration_files` says; `voxels` is in voxels of the network's grid."""
    import SimpleITK as sitk

    folder, case = Path(output_dir), pair.names["case"]
    folder.mkdir(parents=True, exist_ok=True)
    field, moving = pair.field(voxels), read_scan(pair.files[1])
    moved = move_volume(np.asarray(moving.array), moving.affine, field, pair.affine)
    write_on_source_grid(moved, pair.files[0], folder / f"{case}_moved.nii.gz", pair.affine)
    image = sitk.Cast(field_image(field, pair.affine), sitk.sitkVectorFloat32)
    with replacing(folder / f"{case}_displacement.nii.gz") as temporary:
        sitk.WriteImage(image, str(temporary))
    # on the network's grid, grown until the fixed scan lies on it: as exact as on the scan's own, and small
    size, cover = cover_grid(voxels.shape[1:], pair.grids[0], pair.shape, pair.affine)
    transform = field_transform(displacement_mm(voxels, *pair.grids, cover, size), cover)
    with replacing(folder / f"{case}_transform.h5") as temporary:
        sitk.WriteTransform(transform, str(temporary))


def attach_registration_scores(
    evaluator: Engine,
    run_dir: str | Path,
    checkpoint: str | Path,
    cases: Mapping[str, Entries],
    labels: Mapping[str, str] | None,
    structures: Sequence[int],
    rivals: Sequence[str] = (),
) -> None:
    """Score each test pair on the fixed scan's own grid; write `cases.csv`, `metrics.json`, `overlay.png` at the end.

    Args:
        evaluator: its output holds `pred` (3, X, Y, Z) in voxels of the network's grid, its batch items of
            `PairedScans`.
        run_dir: the run's folder.
        checkpoint: which weights are scored, told in the measures.
        cases: the split; `test` is scored.
        labels: the label map; None where there are no label maps.
        structures: the values of the structures that are scored.
        rivals: what else is scored: "none", and of `tomokit.rivals.registration.RIVALS`.

    Raises:
        TomokitError: when there is no test case, or no such rival.
    """
    check_test_cases(cases)
    if unknown := [name for name in rivals if name not in (NONE, *RIVALS)]:
        raise TomokitError(f"`rivals` must be of {', '.join((NONE, *RIVALS))}, got {unknown[0]!r}")
    run_dir = Path(run_dir)
    names = {value: (labels or {})[str(value)] for value in structures}
    pairs: list[tuple[Pair, NDArray[np.float16]]] = []
    rows: list[dict[str, Any]] = []
    began, started = time.perf_counter(), 0.0

    def start(_: Engine) -> None:
        nonlocal started
        started = time.perf_counter()

    def score(engine: Any) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            pair, voxels = find_pair(item), as_array(output["pred"])
            field = pair.field(voxels)
            rows.append(pair_row(pair, field, names, time.perf_counter() - started))
            pairs.append((pair, voxels.astype(np.float16)))  # for the picture

    def finish(_: Engine) -> None:
        measures: dict[str, Any] = {"task": TASK, "checkpoint": tell_checkpoint(run_dir, checkpoint)}
        measures |= {"seconds": time.perf_counter() - began, **summarise_registration(rows), "picture": PICTURE}
        write_scores(run_dir, rows, measures)
        shown = pick_cases([row | {"class": "all"} for row in rows]) if names else [row["case"] for row in rows[:3]]
        by_case = {pair.names["case"]: (pair, voxels, row) for (pair, voxels), row in zip(pairs, rows, strict=True)}
        draw_registrations([picture_pair(*by_case[case]) for case in shown], run_dir / PICTURE)
        found: dict[str, Any] = {}
        for name in rivals:
            logger.info("rival: %s", name)
            found[name] = summarise_registration([rival_row(pair, name, names) for pair, _ in pairs])
            write_scores(run_dir, rows, {**measures, "rivals": found})
        tell_scores(run_dir, "pair")

    if is_main_process():
        evaluator.add_event_handler(Events.ITERATION_STARTED, start)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, score)
        ProgressBar("evaluate", "pair").attach(evaluator)
        evaluator.add_event_handler(Events.COMPLETED, finish)


def pair_row(pair: Pair, field: Field, names: Mapping[int, str], seconds: float) -> dict[str, Any]:
    """Return the row of a pair in the table of cases, for a displacement in mm on the fixed scan's grid."""
    if pair.truths is None or not names:
        return {**pair.names, **score_registration(field, pair.affine), "seconds": seconds}
    fixed, moving = (read_scan(path) for path in pair.truths)
    arrays = (np.asarray(fixed.array), np.asarray(moving.array))
    return {**pair.names, **score_registration(field, pair.affine, arrays, moving.affine, names), "seconds": seconds}


def rival_row(pair: Pair, name: str, names: Mapping[int, str]) -> dict[str, Any]:
    """Return the row of a pair that a rival registered."""
    fixed, moving = (read_scan(path) for path in pair.files)
    began = time.perf_counter()
    field = pair.still() if name == NONE else register(fixed, moving, name)
    return pair_row(pair, field, names, time.perf_counter() - began)


def picture_pair(pair: Pair, voxels: NDArray[np.float16], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pair with its volumes on the fixed scan's grid, 0 to 1, its displacement and a title."""
    fixed, moving = (read_scan(path) for path in pair.files)
    still, field = pair.still(), pair.field(voxels)
    images = [normalise_intensity(np.asarray(volume.array, np.float32)) for volume in (fixed, moving)]
    dice = "" if row.get("dice") is None else f", Dice {row['dice']:.3f}"
    return {
        "title": f"{pair.names['moving']} onto {pair.names['case']}{dice}",
        "affine": pair.affine,
        "fixed": images[0],
        "moving": move_volume(images[1], moving.affine, still, pair.affine),
        "moved": move_volume(images[1], moving.affine, field, pair.affine),
        "displacement": field - still,
    }
