"""Postprocessing of label maps, chosen per structure on the validation cases and kept only where it helps."""

import json
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray

from tomokit.engines.checkpoints import load, weights_of
from tomokit.engines.hardware import plain, to_channels_last
from tomokit.errors import TomokitError
from tomokit.files import read_json, write_json
from tomokit.geometry import voxel_volume_ml
from tomokit.held_out import keep_volumes
from tomokit.labels import foreground
from tomokit.runs import is_main_process

logger = logging.getLogger(__name__)

FILE = "postprocessing.json"
SHARES = (0.02, 0.05, 0.1, 0.2, 0.5)  # of the smallest true volume: the smallest pieces that could be kept
LEAST_GAIN = 0.001  # in mean Dice; less is within the noise of a validation part
LEAST_HELPED = 3  # cases; what helps one or two may be their accident
Labels = NDArray[Any]
Transform = Callable[[dict[str, Any]], Mapping[str, Any]]


class Step(NamedTuple):
    """What is done to a structure: only its largest piece is kept, or no piece below a volume in ml."""

    largest: bool = False
    minimum_ml: float = 0.0

    def __str__(self) -> str:
        return "largest piece" if self.largest else f"pieces of {self.minimum_ml:.3g} ml and more"


class Pieces(NamedTuple):
    """A structure's predicted pieces in one case: the voxels of each, how many are true; all true voxels and pieces."""

    sizes: NDArray[np.intp]
    hits: NDArray[np.intp]
    truth: int
    truth_pieces: int


class ChosenPostprocessingd(MapTransform):
    """Does to a label map what was chosen when its run was trained, as `<run_dir>/postprocessing.json` says.

    Without the file, as for a run without validation cases, the label map stays as it is.

    Args:
        keys: the key of the label map (1, X, Y[, Z]), a `MetaTensor` whose affine gives the voxels' volume.
        run_dir: the run's folder.
    """

    def __init__(self, keys: KeysCollection, run_dir: str | Path) -> None:
        super().__init__(keys)
        self.path = Path(run_dir) / FILE
        self.steps: dict[int, Step] | None = None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return `data` with the removed pieces of each label map set to background."""
        result = dict(data)
        if self.steps is None:
            self.steps = read_steps(self.path)
        for key in self.key_iterator(result) if self.steps else ():
            label_map = result[key]
            values = label_map.as_tensor().cpu().numpy().copy()
            unit = voxel_volume_ml(np.asarray(label_map.affine.cpu()))
            for value, step in self.steps.items():
                mask = values[0] == value
                values[0][mask & ~keep_pieces(mask, step, unit)] = 0
            result[key] = MetaTensor(torch.from_numpy(values).to(label_map.device), meta=label_map.meta)
        return result


def choose_postprocessing(
    evaluator: Any, postprocessing: Transform, run_dir: str | Path, labels: Mapping[str, str], spacing: Sequence[float]
) -> dict[str, Any] | None:
    """Return what was chosen for each structure on the validation cases, written to `<run_dir>/postprocessing.json`.

    Each structure is tried with several smallest sizes and, where it truly is one piece in every case that has it, with
    its largest piece alone. The best is kept if it raises the structure's mean Dice by 0.001, helps at least three
    cases, and more than it harms. The volumes that result are kept for what they promise of new cases
    (`tomokit.held_out`). None is returned, and nothing written, where there are no validation cases or the
    network's classes overlap.

    Args:
        evaluator: MONAI's evaluator on the validation cases; its network gets the best weights.
        postprocessing: what makes a label map (1, X, Y[, Z]) of the logits.
        run_dir: the run's folder.
        labels: the label map.
        spacing: of the network's grid in mm.
    """
    if not is_main_process():
        return None
    best = Path(run_dir) / "checkpoints" / "best.pt"
    cases = evaluator.data_loader.dataset if best.is_file() else []
    if not len(cases):
        return None
    evaluator.network.load_state_dict(weights_of(load(best)))
    structures = foreground(labels)
    pieces: dict[int, list[Pieces]] = {value: [] for value in structures}
    for item in cases:
        prediction, truth = predict(evaluator, postprocessing, item)
        if prediction.shape[0] != 1:
            return None  # regions overlap: a piece may belong to several
        for value in structures:
            pieces[value].append(measure_pieces(prediction[0] == value, truth[0] == value))
    unit = float(np.prod(spacing)) / 1000
    found = {value: choose_step(pieces[value], unit) for value in structures}
    content = {
        "cases": len(cases),
        "steps": {str(value): choice["step"] for value, choice in found.items() if choice["step"]},
        "tried": {labels[str(value)]: choice for value, choice in found.items()},
    }
    write_json(Path(run_dir) / FILE, content)
    if len(spacing) == 3:
        keep_volumes(run_dir, {name: _volumes(pieces[value], found[value], unit) for value, name in structures.items()})
    for value, choice in found.items():
        if choice["step"]:
            told = (structures[value], choice["told"], choice["dice"], choice["plain"])
            logger.info("postprocessing: of %s the %s; mean Dice %.4f, without %.4f", *told)
    return content


def predict(evaluator: Any, postprocessing: Transform, item: Mapping[str, Any]) -> tuple[Labels, Labels]:
    """Return the label maps (1, X, Y[, Z]) of the network, in the evaluator's own way, and of the case."""
    image = to_channels_last(plain(item["image"])[None].to(evaluator.state.device or "cpu"))
    evaluator.network.eval()
    with torch.inference_mode():
        logits = evaluator.inferer(image, evaluator.network)
    done = postprocessing({"pred": logits[0], "label": plain(item["label"]).to(logits.device)})
    arrays = [torch.as_tensor(done[key]).cpu().numpy() for key in ("pred", "label")]
    return arrays[0], arrays[1]


def choose_step(cases: Sequence[Pieces], unit: float) -> dict[str, Any]:
    """Return the best step for one structure: `{"step", "told", "dice", "plain"}`, its step None where none helps.

    `cases` are the structure's pieces in each case, `unit` is a voxel's volume in ml.
    """
    before = np.array([dice_after(case, Step(), unit) for case in cases])
    choice: dict[str, Any] = {"step": None, "told": None, "dice": _mean(before), "plain": _mean(before)}
    volumes = [case.truth * unit for case in cases if case.truth]
    if not volumes:
        return choice
    steps = [Step(minimum_ml=share * min(volumes)) for share in SHARES]
    if all(case.truth_pieces <= 1 for case in cases):
        steps.insert(0, Step(largest=True))
    for step in steps:
        after = np.array([dice_after(case, step, unit) for case in cases])
        emptied = np.isnan(after) & (before == 0)  # rightly nothing is predicted any more: 0/0 has no Dice
        better, worse = int((after > before).sum() + emptied.sum()), int((after < before).sum())
        least = max(choice["plain"] + LEAST_GAIN, np.nextafter(choice["dice"], 2))
        if better >= max(LEAST_HELPED, worse + 1) and _mean(after) >= least:
            choice |= {"step": step._asdict(), "told": str(step), "dice": _mean(after)}
    return choice


def measure_pieces(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Pieces:
    """Return the pieces of a predicted and of the true mask; voxels that touch at a corner are of one piece."""
    numbers, count = _number_pieces(prediction)
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    hits = np.bincount(numbers[truth], minlength=count + 1)[1:]
    return Pieces(sizes, hits, int(truth.sum()), _number_pieces(truth)[1])


def kept_pieces(sizes: NDArray[np.intp], step: Step, unit: float) -> NDArray[np.bool_]:
    """Return which pieces a step keeps; of the largest one, the first."""
    if step.largest and len(sizes):
        return np.asarray(np.arange(len(sizes)) == sizes.argmax())
    return np.asarray(sizes * unit >= step.minimum_ml)


def dice_after(case: Pieces, step: Step, unit: float) -> float:
    """Return a case's Dice after a step, NaN where nothing is predicted nor true."""
    kept = kept_pieces(case.sizes, step, unit)
    total = int(case.sizes[kept].sum()) + case.truth
    return 2 * int(case.hits[kept].sum()) / total if total else float("nan")


def keep_pieces(mask: NDArray[np.bool_], step: Step, unit: float) -> NDArray[np.bool_]:
    """Return a mask without the pieces that a step removes."""
    numbers, count = _number_pieces(mask)
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)
    return np.asarray(np.concatenate([[False], kept_pieces(sizes[1:], step, unit)])[numbers])


def _number_pieces(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], int]:
    """Return each voxel's piece, from 1 on, and how many there are."""
    numbers, count = scipy.ndimage.label(mask, np.ones((3,) * mask.ndim))
    return numbers, int(count)


def read_steps(path: Path) -> dict[int, Step]:
    """Return the chosen step of each label value; none where there is no file.

    Raises:
        TomokitError: when the file is malformed.
    """
    if not path.is_file():
        return {}
    content = read_json(path)
    try:
        steps = {
            int(value): Step(step["largest"], float(step["minimum_ml"])) for value, step in content["steps"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TomokitError(f"{path} is malformed ({json.dumps(content)[:80]}); delete it to use none") from error
    return steps


def _volumes(cases: Sequence[Pieces], choice: Mapping[str, Any], unit: float) -> tuple[list[float], list[float]]:
    """Return a structure's predicted volumes in ml after what was chosen, and the true ones, of each case."""
    step = Step(**(choice["step"] or {}))
    predicted = [float(case.sizes[kept_pieces(case.sizes, step, unit)].sum()) * unit for case in cases]
    return predicted, [case.truth * unit for case in cases]


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean of what has a value, 0 where nothing has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0
