"""Anomalies: test ones put into normal volumes, scores of a volume from those of its voxels, the threshold, measures.

A score map says of each voxel how unlike the normal cases it is, 0 and more. The four kinds of test anomalies are
spheres. Only `foreign`, a patch of another patient, is of the kind that the foreign-patch model learns from: it counts
as seen. Nothing may be chosen by them.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric
from monai.transforms import ResizeWithPadOrCrop
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor
from torch.utils.data import Dataset

from tomokit.errors import TomokitError
from tomokit.files import read_json
from tomokit.statistics import Interval, bootstrap_mean, bootstrap_statistic

TASK = "anomaly"
FILE = "decision.json"
CLEAN = "clean"
KINDS = ("bright", "dark", "foreign", "shuffled")
SEEN = ("foreign",)
RADIUS = (3.0, 5.0)  # voxels
STEP = 0.35  # of the range 0–1, up or down
WEIGHT = 0.8  # of the other patient
ROWS = ("case", "patient", "kind", "score")
Array = NDArray[Any]
Row = Mapping[str, Any]


class Altered(NamedTuple):
    """A volume with an anomaly: image (C, X, Y[, Z]) and where it is, bool (X, Y[, Z])."""

    image: Array
    mask: NDArray[np.bool_]


def draw_sphere(shape: Sequence[int], generator: np.random.Generator) -> NDArray[np.bool_]:
    """Return a sphere of radius 3 to 5 voxels at a random place wholly within a volume (X, Y[, Z]).

    Raises:
        TomokitError: when the volume is too small for it.
    """
    radius = generator.uniform(*RADIUS)
    least = math.ceil(radius)
    if min(shape) < 2 * least + 1:
        raise TomokitError(f"a test anomaly needs {2 * least + 1} voxels along each axis, got a volume of {shape}")
    centre = [generator.uniform(least, size - 1 - least) for size in shape]
    places = np.meshgrid(*map(np.arange, shape), indexing="ij", sparse=True)
    squares = (np.square(place - middle) for place, middle in zip(places, centre, strict=True))
    return np.asarray(sum(squares) <= radius**2)


def alter(image: Array, kind: str, other: Array, generator: np.random.Generator) -> Altered:
    """Return a normal volume with one anomaly of a kind.

    "bright" and "dark" add and take 0.35, clipped to 0–1; "foreign" blends in 0.8 of another patient, mirrored along
    the first axis; "shuffled" permutes the sphere's voxels, those of all channels alike; "clean" changes nothing.

    Args:
        image: (C, X, Y[, Z]), scaled to 0–1.
        kind: one of `KINDS`, or "clean".
        other: another patient's, of any size.
        generator: decides place and radius.

    Raises:
        TomokitError: when there is no such kind, or the volume is too small.
    """
    if kind not in (*KINDS, CLEAN):
        raise TomokitError(f"a test anomaly must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == CLEAN:
        return Altered(image, np.zeros(image.shape[1:], bool))
    mask = draw_sphere(image.shape[1:], generator)
    result = image.copy()
    if kind == "foreign":
        mirrored = np.flip(other, 1).copy()
        fitted = np.asarray(ResizeWithPadOrCrop(image.shape[1:], mode="edge")(mirrored))
        result[:, mask] = (1 - WEIGHT) * image[:, mask] + WEIGHT * fitted[:, mask]
    elif kind == "shuffled":
        result[:, mask] = generator.permutation(image[:, mask], axis=1)
    else:
        result[:, mask] = (image[:, mask] + (STEP if kind == "bright" else -STEP)).clip(0, 1)
    return Altered(result, mask)


class TestAnomalies(Dataset):
    """Each case of a data set once as it is, and once with an anomaly of each kind, always the same one.

    Args:
        data: a data set of preprocessed normal cases: "case", "patient", and "image" (C, X, Y[, Z]), scaled to 0–1.
        kinds: of anomalies.

    Raises:
        TomokitError: when there are fewer than two patients, of whom one has the foreign patch from the other.
    """

    __test__ = False  # pytest would take it for a test

    def __init__(self, data: Dataset, kinds: Sequence[str] = KINDS) -> None:
        self.data = data
        self.kinds = (CLEAN, *kinds)
        self.entries = list(getattr(data, "data"))  # noqa: B009 (torch's stubs lack it)
        patients = [entry["patient"] for entry in self.entries]
        if len(set(patients)) < 2:
            raise TomokitError(f"foreign patches need test cases of two patients, got those of {sorted(set(patients))}")
        self.others = [_next_other(patients, number) for number in range(len(patients))]

    def __len__(self) -> int:
        return len(self.entries) * len(self.kinds)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return "case", "patient", "kind", "image" with its anomaly, and "mask" (1, X, Y[, Z])."""
        number, kind = index // len(self.kinds), self.kinds[index % len(self.kinds)]
        entry = self.entries[number]
        item, other = self.data[number], self.data[self.others[number]]
        generator = np.random.default_rng([zlib.crc32(entry["case"].encode()), self.kinds.index(kind)])
        altered = alter(np.asarray(item["image"]), kind, np.asarray(other["image"]), generator)
        image = torch.as_tensor(altered.image)
        if isinstance(item["image"], MetaTensor):
            image = MetaTensor(image, meta=item["image"].meta)
        mask = torch.from_numpy(altered.mask)[None]
        return {"case": entry["case"], "patient": entry["patient"], "kind": kind, "image": image, "mask": mask}


def volume_score(scores: Array | Tensor, percentile: float) -> float:
    """Return the score of a volume: this percentile of its voxels' scores, of any shape."""
    return float(np.percentile(np.asarray(torch.as_tensor(scores).cpu(), dtype=np.float32), percentile))


class VoxelPrecision(CumulativeIterationMetric):
    """MONAI metric: the mean over volumes of the average precision of their voxels' scores.

    It takes score maps (B, 1, X, Y[, Z]) and weights of patches of the same shape, 0 where there is none, or lists of
    single ones. Volumes without a patch are left out; NaN where there is no other.
    """

    def _compute_tensor(self, y_pred: Tensor, y: Tensor, **_: Any) -> Tensor:
        return torch.tensor([[voxel_precision(*pair)] for pair in zip(y_pred.cpu(), y.cpu() > 0, strict=True)])

    def aggregate(self) -> float:
        """Return the metric over all volumes since the last reset."""
        kept = self.get_buffer()
        return math.nan if kept is None else float(torch.as_tensor(kept).nanmean())


def voxel_precision(scores: Array | Tensor, mask: Array | Tensor) -> float:
    """Return the average precision of the voxels of a volume; NaN without an anomaly."""
    truth = np.asarray(mask, bool).ravel()
    return float(average_precision_score(truth, np.asarray(scores, np.float32).ravel())) if truth.any() else math.nan


def choose_threshold(normal: Sequence[float], rate: float) -> dict[str, Any]:
    """Return `{"threshold", "rate", "normal", "flagged"}`: the score above which a volume is flagged.

    It is the lowest one that at most `rate` of new normal volumes exceed on average, from `normal` cases alone; of too
    few for that rate the highest of them. "flagged" is how many of them lie above it.

    Raises:
        TomokitError: when there is no normal case, a score is not finite, or the rate does not lie between 0 and 1.
    Source: Vovk et al., Algorithmic learning in a random world (2005): split conformal prediction.
    """
    if not 0 < rate < 1:
        raise TomokitError(f"false_positive_rate must lie between 0 and 1, got {rate}")
    scores = np.sort(np.asarray(normal, float))
    if not len(scores) or not np.isfinite(scores).all():
        raise TomokitError(f"the threshold needs finite scores of normal validation cases, got {scores.tolist()}")
    place = min(math.ceil((len(scores) + 1) * (1 - rate)), len(scores))
    threshold = float(scores[place - 1])
    flagged = int((scores > threshold).sum())
    return {"threshold": threshold, "rate": rate, "normal": len(scores), "flagged": flagged}


def read_threshold(path: Path) -> float | None:
    """Return the score above which a volume is flagged, or None where no normal case decided on one.

    Raises:
        TomokitError: when the file is malformed, or of another task.
    """
    if not path.is_file():
        return None
    content = read_json(path)
    if not isinstance(content, dict) or content.get("task") != TASK or "threshold" not in content:
        raise TomokitError(f"{path} must hold the threshold of an anomaly run, got {content!r}; train it again")
    return float(content["threshold"])


def summarise_anomalies(rows: Sequence[Row], threshold: float | None) -> dict[str, Any]:
    """Return the blocks `summary` and `per_class` (by kind) of metrics.json.

    Args:
        rows: of each case and kind, "clean" too: "case", "patient", "kind", "score", and of anomalies "voxel_ap".
        threshold: above which a volume is flagged; None tells nothing of it.

    Raises:
        TomokitError: when a row lacks a column, a score is not finite, or there is no clean volume.
    """
    _check_rows(rows)
    clean = [row for row in rows if row["kind"] == CLEAN]
    per_kind = {}
    for kind in dict.fromkeys(row["kind"] for row in rows if row["kind"] != CLEAN):
        own = [row for row in rows if row["kind"] == kind]
        per_kind[kind] = {
            "auroc": _entry(separate(clean, own), len(own)),
            "voxel_ap": _mean(own, [row["voxel_ap"] for row in own]),
            "flagged": _share(own, threshold),
            "seen": kind in SEEN,
        }
    unseen = [row for row in rows if row["kind"] not in (CLEAN, *SEEN)]
    summary = {"auc": _entry(separate(clean, unseen), len(unseen)), "flagged normals": _share(clean, threshold)}
    return {"summary": summary, "per_class": per_kind}


def separate(clean: Sequence[Row], altered: Sequence[Row]) -> Interval:
    """Return the area under the ROC curve of altered volumes against clean ones, patients drawn for its interval."""
    rows = [*clean, *altered]
    truth = np.array([row["kind"] != CLEAN for row in rows])
    scores = np.array([row["score"] for row in rows])

    def area(truth: Array, scores: Array) -> float:
        return float(roc_auc_score(truth, scores)) if truth.any() and not truth.all() else math.nan

    return bootstrap_statistic(area, [truth, scores], [row["patient"] for row in rows], resamples=999)


def _next_other(patients: Sequence[str], number: int) -> int:
    """Return the number of the next case, in their order, of another patient."""
    following = [*range(number + 1, len(patients)), *range(number)]
    return next(place for place in following if patients[place] != patients[number])


def _share(rows: Sequence[Row], threshold: float | None) -> dict[str, Any]:
    """Return the share of volumes above the threshold."""
    return _mean(rows, [] if threshold is None else [float(row["score"] > threshold) for row in rows])


def _mean(rows: Sequence[Row], values: Sequence[float]) -> dict[str, Any]:
    """Return a mean over the rows with its interval; an empty one without values."""
    if not values:
        return _entry(Interval(None, None, None, 0), 0)
    return _entry(bootstrap_mean(values, [row["patient"] for row in rows]), len(rows))


def _entry(interval: Interval, cases: int) -> dict[str, Any]:
    """Return an interval as an entry of metrics.json."""
    ci95 = None if interval.low is None else [interval.low, interval.high]
    return {"mean": interval.mean, "ci95": ci95, "n": interval.n_patients, "cases": cases}


def _check_rows(rows: Sequence[Row]) -> None:
    """Raise when rows lack a column, a score is not finite, or no volume is clean."""
    for row in rows:
        if lacking := [column for column in ROWS if column not in row]:
            raise TomokitError(f"case {row.get('case')} has no column {lacking[0]}")
        if not math.isfinite(row["score"]):
            raise TomokitError(f"the score of case {row['case']} ({row['kind']}) is {row['score']}; it must be finite")
    if not any(row["kind"] == CLEAN for row in rows):
        raise TomokitError(f"there is no clean volume among the {len(rows)} scored, so nothing to tell anomalies from")
