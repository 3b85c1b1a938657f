"""Scikit-learn's classifiers, and the best single rule, on measures of size, shape and intensity."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from tomokit.errors import TomokitError
from tomokit.geometry import grid_difference
from tomokit.measure import feature_names, measure_features
from tomokit.metrics import area_under_curve
from tomokit.rivals.cases import class_names, probability_rows, read_scan, training_targets

logger = logging.getLogger(__name__)

MODELS = ("threshold", "logistic", "tree", "perceptron")
SHOWN_CASES = 5


def score_features(
    training_entries: Sequence[Mapping[str, Any]],
    test_entries: Sequence[Mapping[str, Any]],
    classes: Mapping[str, str],
    model: str = "logistic",
    mask_above: float | None = None,
) -> list[dict[str, Any]]:
    """Return a row `{"case", "patient", "truth", "p_<class>" …}` per test case, of a classifier on its measures.

    Arguments and errors are those of `score_feature_models`, of which it is one model.
    """
    return score_feature_models(training_entries, test_entries, classes, [model], mask_above)[model]


def score_feature_models(
    training_entries: Sequence[Mapping[str, Any]],
    test_entries: Sequence[Mapping[str, Any]],
    classes: Mapping[str, str],
    models: Sequence[str] = MODELS,
    mask_above: float | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Return for each model its rows `{"case", "patient", "truth", "p_<class>" …}`, one per test case.

    Each case is measured once for all of them.

    Args:
        training_entries: hold `case`, `image`, `label` (an integer class), and what `feature_table` takes.
        test_entries: likewise.
        classes: dataset.json's `labels`, `{"0": "normal", …}`.
        models: of "threshold", "logistic" regression, "tree" and "perceptron", as `make_classifier` builds them.
        mask_above: as in `feature_table`.

    Raises:
        TomokitError: when a model is none of these, the training cases are all of one class, a label is no class, or
            as `feature_table`.
    """
    classifiers = {model: make_classifier(model) for model in models}
    names = class_names(classes, [*training_entries, *test_entries])
    targets = training_targets(training_entries, names)
    features, table = feature_table([*training_entries, *test_entries], mask_above)
    rows = {}
    for model, classifier in classifiers.items():
        classifier.fit(table[: len(targets)], targets)
        rows[model] = probability_rows(classifier, test_entries, table[len(targets) :], names)
        if model == "threshold":
            logger.info("the best single measure is %s", best_feature(classifier, features))
    return rows


def feature_table(
    entries: Sequence[Mapping[str, Any]], mask_above: float | None = None
) -> tuple[list[str], NDArray[np.float64]]:
    """Return the features' names and values (cases, features), measured on the files' own grids.

    A case with a `mask` (a file on the image's grid; what is not 0 in it is the structure) has its structure's shape
    and the intensities within it. Without masks, `mask_above` says that the images are masks themselves: voxels above
    it are the structure, whose shape is measured. Without either, the intensities of the whole image are. Of several
    modalities the first is used. A structure without a voxel measures 0 in everything.

    Raises:
        TomokitError: when there is no case, some cases have a mask and others none, or an image and its mask do not lie
            on one grid or can't be read or measured.
    """
    lacking = [str(entry["case"]) for entry in entries if not entry.get("mask")]
    masked = len(lacking) < len(entries)
    if not entries:
        raise TomokitError("no case to measure, got 0 entries; does the split have cases?")
    if masked and lacking:
        shown = ", ".join(lacking[:SHOWN_CASES]) + ", …" * (len(lacking) > SHOWN_CASES)
        raise TomokitError(
            f"{len(lacking)} of {len(entries)} cases have no `mask` ({shown}), the others have; give all one, or none"
        )
    table = [list(_measure(entry, mask_above).values()) for entry in entries]
    return feature_names(masked, mask_above), np.array(table)


def make_classifier(model: str) -> Pipeline:
    """Return scikit-learn's classifier behind a standardisation, which is fitted with it on the training cases.

    "threshold" takes the one measure that ranks the training cases best, and a regression of it alone: the cut is where
    its most probable class changes, and its AUC is the measure's own. "logistic" is a regression with a ridge of 1,
    "tree" is 4 questions deep with 1 % of the cases or more at each end, "perceptron" has 16 hidden units, with the
    ridge of the regression. All give the same model at each fit.

    Raises:
        TomokitError: when `model` is none of these.
    """
    if model not in MODELS:
        raise TomokitError(f"`model` must be one of {', '.join(MODELS)}, got {model!r}")
    if model == "tree":
        tree = DecisionTreeClassifier(max_depth=4, min_samples_leaf=0.01, random_state=0)
        return make_pipeline(StandardScaler(), tree)
    if model == "perceptron":
        perceptron = MLPClassifier((16,), solver="lbfgs", alpha=1.0, max_iter=10000, random_state=0)
        return make_pipeline(StandardScaler(), perceptron)
    regression = LogisticRegression(max_iter=2000, random_state=0)
    if model == "logistic":
        return make_pipeline(StandardScaler(), regression)
    return make_pipeline(StandardScaler(), SelectKBest(rank_features, k=1), regression)


def rank_features(table: NDArray[np.float64], targets: NDArray[Any]) -> NDArray[np.float64]:
    """Return how far each feature of a table (cases, features) alone tells the classes apart, 0–0.5 (features,).

    It is the distance of the area under the ROC curve from 0.5, of several classes the mean of each against the rest.
    """
    classes = np.unique(targets)
    areas = [[area_under_curve(targets == value, column) for value in classes] for column in table.T]
    return np.abs(np.array(areas) - 0.5).mean(axis=1)


def best_feature(threshold: Pipeline, names: Sequence[str]) -> str:
    """Return the name of the feature that a fitted "threshold" took."""
    return names[int(threshold[1].get_support(indices=True)[0])]


def _measure(entry: Mapping[str, Any], mask_above: float | None) -> dict[str, float]:
    """Return one case's features; what can't be measured is told with its name."""
    try:
        image, affine = read_scan(entry["image"])
        mask: NDArray[Any] | None = None
        if entry.get("mask"):
            mask, mask_affine = read_scan(entry["mask"])
            if difference := grid_difference(affine, image.shape, mask_affine, mask.shape):
                raise TomokitError(f"image and mask do not lie on one grid: {difference}; resample one of them")
        return measure_features(image, affine, mask, mask_above)
    except TomokitError as error:
        raise TomokitError(f"{entry['case']}: {error}") from error
