"""Labels that a trained network, the teacher, gives to unlabelled cases: those it is sure of train the next network."""

import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.transforms import MapTransform

from tomokit.datasets import KEPT, Entry, find_dataset, read_entries
from tomokit.engines.evaluation import tell_checkpoint
from tomokit.engines.hardware import plain
from tomokit.engines.progress import ProgressBar
from tomokit.errors import TomokitError, raise_problems
from tomokit.files import read_json, write_json, write_table
from tomokit.inference import SlabInferer, finish_writing
from tomokit.inference.reducing import CONFIDENCE
from tomokit.runs import is_main_process
from tomokit.splits import check_disjoint

logger = logging.getLogger(__name__)

FILE = "pseudo_labels.json"
KINDS = ("classes", "segmentation")


class PseudoLabeld(MapTransform):
    """Keeps of a label map what is certain; the other voxels get the ignore label.

    Beside it, as `<key>_sure`, stands the share of voxels that are certain, and as `<key>_highest` the largest
    probability of a voxel that a structure is the likeliest of.

    Args:
        keys: the key of the label map (1, X, Y[, Z]).
        inferer: what made it, with `maps: {confidence: confidence}`.
        confidence: the probability of a voxel's label must be at least this; it is known in steps of 1/255.
        ignore_label: the label of the others.

    Raises:
        TomokitError: when the confidence is not above 0 and at most 1, the labels are of regions that overlap, or the
            inferer keeps no such map.
    """

    def __init__(self, keys: KeysCollection, inferer: SlabInferer, confidence: float, ignore_label: int) -> None:
        super().__init__(keys)
        if inferer.regions:
            raise TomokitError("the network tells regions that overlap, which have no pseudo-labels")
        if inferer.maps.get(CONFIDENCE) != CONFIDENCE:
            raise TomokitError(
                "pseudo-labels need the inferer's map of the confidence: `maps: {confidence: confidence}`"
            )
        self.inferer = inferer
        self.confidence = check_confidence(confidence)
        self.ignore_label = ignore_label

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with what is certain of each key's label map."""
        result = dict(data)
        chances = plain(self.inferer.found_maps[CONFIDENCE]) / 255
        sure = chances >= self.confidence
        for key in self.key_iterator(result):
            labels = plain(torch.as_tensor(result[key])).to(chances.device)
            result[key] = torch.where(sure, labels, self.ignore_label)
            result[f"{key}_sure"] = sure.float().mean()
            result[f"{key}_highest"] = (chances * (labels > 0)).max()
        return result


def check_confidence(confidence: float) -> float:
    """Return a confidence.

    Raises:
        TomokitError: when it is not above 0 and at most 1.
    """
    if not 0 < confidence <= 1:
        raise TomokitError(f"`confidence` must be above 0 and at most 1, got {confidence}")
    return float(confidence)


def attach_pseudo_labels(
    evaluator: Any,
    run_dir: str | Path,
    output_dir: str | Path,
    checkpoint: str | Path,
    confidence: float,
    kind: str,
) -> None:
    """Write what the teacher says of each unlabelled case to `<output_dir>/pseudo_labels.json` at the end.

    A case is taken whose class is certain, or of whose structures a voxel is; `pseudo_labels.csv` has all of them. Its
    "confidence" is the probability of the class, or the largest one of a voxel that a structure is the likeliest of.

    Args:
        evaluator: on the unlabelled cases; its output holds `pred`, probabilities (C,) of the classes, or what
            `PseudoLabeld` gives, written as `<output_dir>/<case>.nii.gz`.
        run_dir: the teacher's folder.
        output_dir: the folder to write to.
        checkpoint: which weights are used, told in the file.
        confidence: of the classes, or what `PseudoLabeld` was given, told in the file.
        kind: "classes" or "segmentation".

    Raises:
        TomokitError: when the kind is another one, or the confidence is out of its range.
    """
    if kind not in KINDS:
        raise TomokitError(f"pseudo-labels are classes or label maps, got the task {kind!r}; train it without them")
    check_confidence(confidence)
    rows: list[dict[str, Any]] = []
    read = _read_class if kind == "classes" else _read_map

    def keep(engine: Any) -> None:
        for item, output in zip(engine.state.batch, engine.state.output, strict=True):
            rows.append({"case": item["case"], **read(item["case"], output, confidence)})

    def finish(_: Engine) -> None:
        finish_writing()
        about = {"teacher": str(run_dir), "checkpoint": tell_checkpoint(Path(run_dir), checkpoint), "kind": kind}
        _write(Path(output_dir), rows, {**about, "confidence": confidence})

    if is_main_process():
        ProgressBar("label", "case").attach(evaluator)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, keep)
        evaluator.add_event_handler(Events.COMPLETED, finish)


def read_pseudo_labels(
    folder: str | Path, cases: Mapping[str, Sequence[Mapping[str, Any]]], dataset_dir: str | Path
) -> list[Entry]:
    """Return the data set's entries of the cases whose pseudo-labels were taken, with these as `label`.

    Args:
        folder: where `attach_pseudo_labels` wrote them.
        cases: the split that they are to be trained on with.
        dataset_dir: the data set that the teacher was trained on, too.

    Raises:
        TomokitError: when there are none, none is certain enough, or one is of a case, or of a patient of the
            validation or test cases, that `cases` has itself.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise TomokitError(f"{path} does not exist; run pseudo_label.yaml behind the teacher's own configs/train.yaml")
    content = read_json(path)
    if not content["cases"]:
        raise TomokitError(
            f"none of the {content['candidates']} unlabelled cases in {path} is certain enough: it is to be "
            f"{content['confidence']}, the highest is {content['highest']:.3g}; run pseudo_label.yaml with a lower one"
        )
    by_name = {entry["case"]: entry for entry in read_entries(find_dataset(dataset_dir), labelled=False)}
    _check_names(path, [row["case"] for row in content["cases"]], by_name, cases)
    entries = []
    for row in content["cases"]:
        label = str(path.parent / row["label"]) if isinstance(row["label"], str) else row["label"]
        known = {key: value for key, value in by_name[row["case"]].items() if key in KEPT}
        entries.append(known | {"label": label})
    check_disjoint({"pseudo-labels": entries, "validation": cases["validation"], "test": cases["test"]})
    told = (len(entries), content["candidates"], content["confidence"], content["teacher"])
    logger.info("pseudo-labels: %d of %d unlabelled cases, confidence %.3g, by %s", *told)
    return entries


def _read_class(_: str, output: Mapping[str, Any], confidence: float) -> dict[str, Any]:
    """Return the likeliest class of a case, its probability, and whether it is taken."""
    chance, label = plain(torch.as_tensor(output["pred"])).flatten().max(0)
    return {"label": int(label), "confidence": float(chance), "taken": bool(chance >= confidence)}


def _read_map(case: str, output: Mapping[str, Any], confidence: float) -> dict[str, Any]:
    """Return the label map's file, the largest probability of a structure, what is certain, and whether it is taken."""
    highest = float(output["pred_highest"])
    sure = {"sure": float(output["pred_sure"]), "taken": bool(output["pred_highest"] >= confidence)}
    return {"label": f"{case}.nii.gz", "confidence": highest, **sure}


def _write(folder: Path, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """Write the table of all cases and the file of those that are taken, and tell how many they are."""
    taken = [{key: row[key] for key in ("case", "label", "confidence")} for row in rows if row["taken"]]
    highest = max((row["confidence"] for row in rows), default=None)
    write_table(folder / "pseudo_labels.csv", rows)
    write_json(folder / FILE, {**about, "candidates": len(rows), "highest": highest, "cases": taken})
    print(f"pseudo-labels: {len(taken)} of {len(rows)} cases, {folder / FILE}", flush=True)
    if not taken:
        logger.warning("no case reaches the confidence %.3g; the highest is %.3g", about["confidence"], highest or 0)


def _check_names(
    path: Path,
    names: Sequence[str],
    by_name: Mapping[str, Entry],
    cases: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """Raise when pseudo-labels are of cases that the data set does not have, or that a part has with their labels."""
    part_of = {entry["case"]: part for part, own in cases.items() for entry in own}
    problems = [f"{name} is not in the data set" for name in names if name not in by_name]
    problems += [f"{name} is among the {part_of[name]} cases" for name in names if name in part_of]
    raise_problems(
        f"{path} does not fit this training; train with the teacher's own split, fold, seed and `label_count`", problems
    )
