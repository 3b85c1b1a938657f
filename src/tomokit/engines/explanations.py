"""Explanations of a classifier's answers: a map of each case on its source's grid, and what such maps are worth."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor, nn

from tomokit.datasets import Entry, unlabelled
from tomokit.engines.evaluation import Entries, tell_checkpoint, write_before_errors
from tomokit.engines.hardware import plain, unwrap
from tomokit.engines.progress import ProgressBar
from tomokit.errors import TomokitError
from tomokit.explain import (
    EXTENT,
    Explainer,
    Randomisation,
    insertion_deletion,
    make_explainer,
    pointing_hit,
    randomisation_check,
)
from tomokit.files import write_json, write_table
from tomokit.geometry import spacing_from_affine
from tomokit.inference import first_image
from tomokit.inference.grids import relate_grids
from tomokit.inputs import list_images
from tomokit.metrics import mean_entry
from tomokit.pictures import draw_maps
from tomokit.reading import read_scan
from tomokit.runs import is_main_process
from tomokit.volumes import read_volume, write_volume

logger = logging.getLogger(__name__)

TABLE, SUMMARY, PICTURE = "explanations.csv", "explanations.json", "explanations.png"
SHOWN, SHOWN_WRONG = 6, 3  # cases of the picture, and those of them that the network gets wrong
CHECKED = 4  # cases whose maps are compared with those of untrained networks
SCORES = ("insertion", "deletion", "random_insertion", "random_deletion", "hit", "energy")


class Setting(NamedTuple):
    """How cases are explained.

    Attributes:
        explain: makes a map of (network, image, class index).
        names: of the classes, in the order of the network's channels.
        output_dir: where the maps are written.
        inputs: keys of what the network takes beside the image.
        tolerance_mm: how far outside its mask a map's maximum may lie.
        seed: of the random orders and weights.
    """

    explain: Explainer
    names: Sequence[str]
    output_dir: Path
    inputs: Sequence[str]
    tolerance_mm: float
    seed: int


class Sample(NamedTuple):
    """A case that a map was made of: the network with all it takes beside the image, (1, C, X, Y[, Z]), the class."""

    network: nn.Module
    image: Tensor
    class_index: int


class GivenInputs(nn.Module):
    """A network that takes an image alone, with what else it takes of one case held.

    Args:
        network: takes an image and further tensors.
        held: those of one case, (1, …) each.
    """

    def __init__(self, network: nn.Module, held: Sequence[Tensor]) -> None:
        super().__init__()
        self.network = network
        self.held = tuple(held)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (B, classes) for images (B, C, X, Y[, Z])."""
        return self.network(image, *(value.expand(len(image), *value.shape[1:]) for value in self.held))


def explained_cases(cases: Mapping[str, Entries], of: str = "test") -> list[Entry]:
    """Return the entries of a part of a run's split; a label is renamed `truth`.

    Raises:
        TomokitError: when there is no such part, or no case in it.
    """
    if of not in cases:
        raise TomokitError(f"`of` must be one of {', '.join(cases)}, got {of!r}")
    if not cases[of]:
        raise TomokitError(f"the run's split has no {of} case to explain; set `of` to another part, or give `input`")
    return unlabelled(cases[of])


def list_explained(inputs: Any, most: int = 12, channels: int = 1) -> list[Entry]:
    """Return the entries that are explained, spread evenly over those there are.

    Args:
        inputs: entries, or scans: what `list_images` takes.
        most: how many entries at most.
        channels: the number of modalities.

    Raises:
        TomokitError: when `most` is below 1, or as `list_images`.
    """
    if most < 1:
        raise TomokitError(f"`explained` must be 1 case or more, got {most}")
    entries = not isinstance(inputs, str | Path) and inputs and all(isinstance(item, Mapping) for item in inputs)
    found = list(inputs) if entries else list_images(inputs, channels, pictures=True)
    return [found[place] for place in np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int)]


def attach_explanations(
    evaluator: Any,
    run_dir: str | Path,
    output_dir: str | Path,
    checkpoint: str | Path,
    labels: Mapping[str, str],
    task: str = "classes",
    method: str = "gradcam",
    extent: int = EXTENT,
    inputs: Sequence[str] = (),
    tolerance_mm: float = 0.0,
    seed: int = 0,
) -> None:
    """Explain the class that the network gives each case; write the maps, and at the end what they are worth.

    `<output_dir>/<case>.nii.gz` is a case's map on its source's grid, float32, 0–1, and 0 where the network does not
    look. `explanations.csv` has a line per case, `explanations.json` the means with their intervals and the
    randomisation check, `explanations.png` three planes of some cases, wrong ones first.

    Args:
        evaluator: its output holds `pred`, probabilities (C,), and `image`; its data set's entries have `case` and
            `image`, and may have `patient`, `truth` and the path of a `mask`.
        run_dir: the run's folder.
        output_dir: the folder to write to.
        checkpoint: whose weights are explained, told in the summary.
        labels: the classes, `{"0": name, …}`.
        task: "classes", or an error.
        method: one of `tomokit.explain.METHODS`.
        extent: the fewest voxels along each axis of the layer that Grad-CAM explains.
        inputs: keys of what the network takes beside the image.
        tolerance_mm: how far outside its mask a map's maximum may lie.
        seed: of the random orders and weights.

    Raises:
        TomokitError: when the task, the method, `extent` or `tolerance_mm` is impossible.
    """
    if task != "classes":
        raise TomokitError(f"explanations are of one class per case, the run's `task` is {task!r}")
    if tolerance_mm < 0:
        raise TomokitError(f"`tolerance_mm` must be 0 or more, got {tolerance_mm}")
    names = [labels[key] for key in sorted(labels, key=int)]
    setting = Setting(make_explainer(method, extent), names, Path(output_dir), inputs, tolerance_mm, seed)
    if not is_main_process():
        return
    entries = {entry["case"]: entry for entry in evaluator.data_loader.dataset.data}
    rows: list[dict[str, Any]] = []
    samples: list[Sample] = []

    def keep(engine: Any) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            sample = _take(unwrap(engine.network), item, output, setting)
            rows.append(_explain(sample, item, output, entries[item["case"]], setting) | {"method": method})
            samples.extend([sample] if len(samples) < CHECKED else [])

    def finish(_: Engine) -> None:
        write_table(setting.output_dir / TABLE, rows)
        about: dict[str, Any] = {"method": method, "checkpoint": tell_checkpoint(Path(run_dir), checkpoint)}
        about |= {"extent": extent} if method != "occlusion" else {}
        _finish(rows, samples, entries, setting, about)

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, keep)
    write_before_errors(evaluator, setting.output_dir / TABLE, rows, "case")
    ProgressBar("explain", "case").attach(evaluator)
    evaluator.add_event_handler(Events.COMPLETED, finish)


def _take(network: nn.Module, item: Mapping[str, Any], output: Mapping[str, Any], setting: Setting) -> Sample:
    """Return what is explained of a case: the class of the greatest probability."""
    image = plain(torch.as_tensor(output["image"]))[None]
    held = [plain(torch.as_tensor(item[key]))[None].to(image.device) for key in setting.inputs]
    return Sample(GivenInputs(network, held) if held else network, image, int(torch.as_tensor(output["pred"]).argmax()))


def _explain(
    sample: Sample, item: Mapping[str, Any], output: Mapping[str, Any], entry: Entry, setting: Setting
) -> dict[str, Any]:
    """Return the line of one case; its map is written."""
    heat = setting.explain(*sample)
    areas = insertion_deletion(sample.network, sample.image, heat, sample.class_index, seed=setting.seed)
    values, affine = place_on_source(heat, item["image"])
    write_volume(setting.output_dir / f"{entry['case']}.nii.gz", values, affine)
    row = {"case": entry["case"], "patient": entry.get("patient", entry["case"])}
    if "truth" in entry:
        row["truth"] = setting.names[int(entry["truth"])]
    row |= {"class": setting.names[sample.class_index], "probability": float(output["pred"][sample.class_index])}
    row |= {name: round(value, 6) for name, value in areas._asdict().items()}
    return row | _point(values, affine, entry, setting.tolerance_mm)


def _point(
    values: NDArray[np.float32], affine: NDArray[np.float64], entry: Entry, tolerance_mm: float
) -> dict[str, float]:
    """Return whether a map (X, Y, Z) points into its case's mask; nothing where there is none, or an empty one.

    Raises:
        TomokitError: when the mask does not lie on the image's grid.
    """
    if "mask" not in entry:
        return {}
    mask = read_volume(entry["mask"]).array
    if mask.shape != values.shape:
        raise TomokitError(
            f"the mask {entry['mask']} of {mask.shape} voxels does not lie on the image of {entry['case']}, of "
            f"{values.shape}; bring it to the image's grid"
        )
    if not (mask > 0).any():
        return {}
    return pointing_hit(values, mask, spacing_from_affine(affine), tolerance_mm)._asdict()


def place_on_source(heat: Tensor, image: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return a map on its image's source grid, (X, Y, Z), and that grid's affine (4, 4).

    It is interpolated linearly, and 0 where the source was cropped away.

    Args:
        heat: the map on the network's grid, (1, X, Y[, Z]).
        image: (C, X, Y[, Z]) on the network's grid, as `LoadImaged` and further transforms give it.

    Raises:
        TomokitError: when the image does not know its source's grid, or is turned against it.
    """
    if not isinstance(image, MetaTensor) or "original_affine" not in image.meta:
        raise TomokitError("a map needs an image as LoadImaged gives it, with the affine of its file")
    dims = heat.ndim - 1
    shape = tuple(int(size) for size in np.asarray(image.meta["spatial_shape"]).ravel())
    source = np.asarray(image.meta["original_affine"], float)
    own = np.asarray(image.affine.cpu(), float)
    affine = np.eye(4)  # of an image of two axes it is (3, 3)
    affine[:dims, :dims], affine[:dims, 3] = own[:dims, :dims], own[:dims, -1]
    axes = relate_grids(tuple(heat.shape[1:]), affine, shape[:dims], source)
    values = heat[0].cpu().numpy()
    for number, axis in enumerate(axes):
        away = np.abs(axis.places[:, None] - np.arange(values.shape[number]))
        weights = np.maximum(0, 1 - away).astype(np.float32)  # of the two neighbours; none of what was cropped away
        values = np.moveaxis(np.tensordot(weights, values, (1, number)), 0, number)
    values = values.transpose(np.argsort([axis.source for axis in axes]))
    return values.reshape(*shape[:dims], *[1] * (3 - dims)), source


def _finish(
    rows: Sequence[dict[str, Any]],
    samples: Sequence[Sample],
    entries: Mapping[str, Entry],
    setting: Setting,
    about: Mapping[str, Any],
) -> None:
    """Write the summary and the picture, and say where all is."""
    check = check_weights(samples, setting.explain, setting.seed)
    content = {**about, "cases": len(rows), "tolerance_mm": setting.tolerance_mm, "summary": summarise_maps(rows)}
    content["randomisation"] = {**check._asdict(), "cases": len(samples), "verdict": check.verdict}
    if shown := _picture_cases(rows, entries, setting.output_dir):
        draw_maps(shown, setting.output_dir / PICTURE)
        content["picture"] = PICTURE
    write_json(setting.output_dir / SUMMARY, content)
    if not check.depends:
        logger.warning("the map does not depend on the weights: it shows the image, not what the network learned")
    print(_tell(content["summary"], check), flush=True)
    files = [TABLE, SUMMARY, *([PICTURE] if shown else [])]
    print(f"explanations: {setting.output_dir}: a map of each case, {', '.join(files)}", flush=True)


def check_weights(samples: Sequence[Sample], explain: Explainer, seed: int = 0) -> Randomisation:
    """Return the mean of the samples' randomisation checks, each with the same untrained networks."""
    checks = [
        randomisation_check(explain, sample.network, [sample.image], [sample.class_index], seed=seed)
        for sample in samples
    ]
    means = np.mean([check.correlations for check in checks], axis=0)
    return Randomisation(checks[0].layers, tuple(means.tolist()))


def summarise_maps(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean of each score with its interval, and of what a map gains beside a random order.

    Each is `{"mean", "ci95", "n", "cases"}`; what no case has is left out.

    Args:
        rows: with a case's "patient" and its scores, as `explanations.csv` has them.
    """
    gains = [
        row
        | {
            "insertion_gain": row["insertion"] - row["random_insertion"],
            "deletion_gain": row["random_deletion"] - row["deletion"],
        }
        for row in map(dict, rows)
    ]
    found = {}
    for name in (*SCORES, "insertion_gain", "deletion_gain"):
        scored = [row for row in gains if name in row]
        if scored:
            found[name] = mean_entry([row[name] for row in scored], [row["patient"] for row in scored])
    return found


def _tell(summary: Mapping[str, Any], check: Randomisation) -> str:
    """Return a line on what the maps are worth."""
    parts = [f"insertion {summary['insertion']['mean']:.3f} (random {summary['random_insertion']['mean']:.3f})"]
    parts += [f"deletion {summary['deletion']['mean']:.3f} (random {summary['random_deletion']['mean']:.3f})"]
    if "hit" in summary:
        parts += [f"points into the mask in {summary['hit']['mean']:.0%}"]
    return f"{', '.join(parts)}; the map {check.verdict} (rank correlation {check.correlations[-1]:.2f})"


def pick_explained(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows of at most six cases for the picture: at most three wrong ones first, then others."""
    wrong = [row for row in rows if row.get("truth", row["class"]) != row["class"]]
    others = [row for row in rows if row not in wrong]
    first = wrong[: max(SHOWN_WRONG, SHOWN - len(others))]
    return [*first, *others[: SHOWN - len(first)]]


def _picture_cases(
    rows: Sequence[Mapping[str, Any]], entries: Mapping[str, Entry], output_dir: Path
) -> list[dict[str, Any]]:
    """Return what the picture shows of some cases; one of a single slice has no three planes, and is left out."""
    found = []
    for row in pick_explained(rows):
        entry = entries[row["case"]]
        scan = read_scan(first_image(entry["image"]))
        image = scan.array if scan.array.ndim == 3 else scan.array[..., 0]
        if min(image.shape) == 1:
            logger.info("%s is a single slice, which the picture leaves out", row["case"])
            continue
        truth = row.get("truth", row["class"])
        verdict = "" if "truth" not in row else "\nright" if truth == row["class"] else f"\nwrong: it is {truth}"
        title = f"{row['case']}: {row['class']} ({row['probability']:.2f}){verdict}"
        mask = read_volume(entry["mask"]).array if "mask" in entry else np.zeros(image.shape)
        heat = read_volume(output_dir / f"{row['case']}.nii.gz").array
        found.append({"case": title, "image": image, "affine": scan.affine, "truth": mask, "prediction": heat})
    return found
