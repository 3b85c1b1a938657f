"""Explanations of real small runs: the maps on their sources' grids, the table, the summary and the picture."""

import csv
import json

import nibabel
import numpy as np
import pytest
import torch
from bundle_runs import config, follow, train
from matplotlib.image import imread
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, Orientationd, ResizeWithPadOrCropd, Spacingd, SqueezeDimd
from torch import nn

from tomokit import phantoms
from tomokit.engines.explanations import (
    GivenInputs,
    Sample,
    Setting,
    _finish,
    attach_explanations,
    check_weights,
    explained_cases,
    list_explained,
    pick_explained,
    place_on_source,
    summarise_maps,
)
from tomokit.errors import TomokitError
from tomokit.explain import make_explainer, pointing_hit, randomisation_check
from tomokit.lint import lint_bundle
from tomokit.reading import ScanReader

SMALL = {"image_size": [16, 16, 16]}
MODE = "modes/explain"
SIZE, CASES, TEST = 16, 14, 4


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """A set whose cases name the masks of their lesions."""
    folder = tmp_path_factory.mktemp("data") / "set"
    phantoms.make_classification_set(folder, cases=CASES, test_cases=TEST, size=SIZE, progress=False)
    content = json.loads((folder / "dataset.json").read_text())
    for index, entry in enumerate([*content["training"], *content["test"]]):
        case = phantoms.make_classification_case(size=SIZE, index=index)
        entry["mask"] = entry["image"].replace("images", "masks")
        (folder / entry["mask"]).parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(case.label, case.affine), folder / entry["mask"])
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def run(volumes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train("classification", folder, dataset_dir=str(volumes), epochs=1, **SMALL)


def read_table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def find_cause(error):
    while error is not None and not isinstance(error, TomokitError):
        error = error.__cause__ or error.__context__
    assert error is not None, "no TomokitError in the chain"
    return str(error)


def test_the_test_cases_are_explained_on_their_own_grids(volumes, run, capsys):
    empty = volumes / "masksTs" / "case_013.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros([SIZE] * 3, np.uint8), nibabel.load(empty).affine), empty)
    follow("classification", run, MODE, explained=3, extent=4)
    folder = run / "explanations"
    assert f"explanations: {folder}" in capsys.readouterr().out
    rows = read_table(folder / "explanations.csv")
    assert [row["case"] for row in rows] == ["case_010", "case_012", "case_013"]  # spread over four
    follow("classification", run, "inference")
    answers = {row["case"]: row for row in read_table(run / "inference" / "classes.csv")}
    truths = {
        entry["image"][9:17]: entry["label"] for entry in json.loads((volumes / "dataset.json").read_text())["test"]
    }
    for row in rows:
        image = nibabel.load(volumes / "imagesTs" / f"{row['case']}.nii.gz")
        found = nibabel.load(folder / f"{row['case']}.nii.gz")
        assert found.shape == image.shape and np.allclose(found.affine, image.affine, atol=1e-4)
        values = found.get_fdata(dtype=np.float32)
        assert found.get_data_dtype() == np.float32 and values.min() >= 0 and values.max() <= 1 + 1e-6
        assert row["class"] == answers[row["case"]]["class"] and row["method"] == "gradcam"
        assert row["probability"] == answers[row["case"]][f"p_{row['class']}"]
        assert row["truth"] == ("compact", "elongated")[truths[row["case"]]]
        if row["case"] == "case_013":
            assert row["hit"] == row["energy"] == ""
            continue
        mask = nibabel.load(volumes / "masksTs" / f"{row['case']}.nii.gz").get_fdata()
        hit = pointing_hit(values, mask)
        assert (float(row["hit"]), float(row["energy"])) == pytest.approx((hit.hit, hit.energy))
    content = json.loads((folder / "explanations.json").read_text())
    assert (content["method"], content["extent"], content["cases"]) == ("gradcam", 4, 3)
    assert content["checkpoint"].startswith("best.pt") and content["randomisation"]["cases"] == 3
    assert content["randomisation"]["verdict"].endswith("depend on the weights") or content["randomisation"]["layers"]
    mean = np.mean([float(row["insertion"]) for row in rows])
    assert content["summary"]["insertion"]["mean"] == pytest.approx(mean) and content["summary"]["hit"]["cases"] == 2
    assert imread(folder / content["picture"]).shape[0] > 900  # three rows
    assert (run / "configs" / "explain.yaml").is_file()


def test_other_scans_are_explained_by_occlusion(volumes, run, tmp_path):
    given = {"input": str(volumes / "imagesTs"), "dataset_dir": "nowhere", "output_dir": str(tmp_path)}
    follow("classification", run, MODE, method="occlusion", explained=2, **given)
    rows = read_table(tmp_path / "explanations.csv")
    assert [row["case"] for row in rows] == ["case_010", "case_013"]
    assert "truth" not in rows[0] and "hit" not in rows[0] and rows[0]["method"] == "occlusion"
    content = json.loads((tmp_path / "explanations.json").read_text())
    assert "extent" not in content and "hit" not in content["summary"] and content["cases"] == 2
    assert nibabel.load(tmp_path / "case_010.nii.gz").get_fdata().max() > 0.5


def test_a_network_with_measures_is_explained_with_them(volumes, run, tmp_path):
    given = {"dataset_dir": str(volumes), "pretrained": str(run)}
    joined = train("classification", tmp_path / "run", "modes/features", mask_key="mask", **given, **SMALL)
    follow("classification", joined, MODE, of="validation", explained=1)
    assert len(read_table(joined / "explanations" / "explanations.csv")) == 1


def test_the_bundle_with_this_mode_has_no_findings():
    assert lint_bundle(config("classification", "train", MODE)) == []


def test_a_mask_on_another_grid_is_told(volumes, run, tmp_path):
    case = "case_010"
    mask = volumes / "masksTs" / f"{case}.nii.gz"
    before = mask.read_bytes()
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), mask)
    try:
        with pytest.raises(RuntimeError) as caught:
            follow("classification", run, MODE, explained=1, output_dir=str(tmp_path))
    finally:
        mask.write_bytes(before)
    assert f"the mask {mask} of (4, 4, 4) voxels does not lie on the image of {case}" in find_cause(caught.value)


# -------------------------------------------------------------------------------------------------- parts


def scan_of(write_volume, shape, affine, *transforms):
    path = write_volume("a.nii.gz", np.zeros(shape, np.float32), affine)
    load = LoadImaged(keys="image", reader=ScanReader(), ensure_channel_first=True)
    return Compose([load, *transforms])({"image": path})["image"]


def places(shape, affine):
    """Return the world coordinates (3, X, Y, Z) of a grid's voxels."""
    return np.einsum("ij,j...->i...", affine, np.stack([*np.indices(shape), np.ones(shape)]))[:3]


def test_a_map_comes_back_to_the_sources_grid(write_volume):
    affine = np.array([[0, 0, -3, 40], [-2, 0, 0, 60], [0, 1.5, 0, -20], [0, 0, 0, 1.0]])
    steps = [Orientationd(keys="image", axcodes="RAS", labels=None), Spacingd(keys="image", pixdim=[2.5] * 3)]
    image = scan_of(
        write_volume, (20, 24, 10), affine, *steps, ResizeWithPadOrCropd(keys="image", spatial_size=[12] * 3)
    )
    weights = np.array([0.01, -0.02, 0.03])
    heat = np.tensordot(weights, places((12, 12, 12), image.affine.numpy()), 1) + 5  # linear in the world's axes
    values, found = place_on_source(torch.as_tensor(heat[None]), image)
    expected = np.tensordot(weights, places((20, 24, 10), affine), 1) + 5
    assert np.array_equal(found, affine) and values.shape == (20, 24, 10)
    ends = places((12, 12, 12), image.affine.numpy()).reshape(3, -1)
    world = places((20, 24, 10), affine)
    low, high = ends.min(1)[:, None, None, None], ends.max(1)[:, None, None, None]
    inside = ((world >= low - 1e-3) & (world <= high + 1e-3)).all(0)
    cropped = ((world < low - 2.51) | (world > high + 2.51)).any(0)  # what is less than a voxel out is on the border
    border = ((world > low - 2.49) & (world < high + 2.49)).all(0)
    assert inside.sum() > 1000 and cropped.sum() > 1000
    np.testing.assert_allclose(values[inside], expected[inside], atol=1e-4)
    assert not values[cropped].any() and values[border].all()


def test_a_map_of_one_slice_comes_back_as_one(write_volume):
    image = scan_of(write_volume, (6, 5, 1), np.diag([-2.0, 3, 1, 1]), SqueezeDimd(keys="image", dim=-1))
    heat = torch.rand(1, 6, 5)
    values, affine = place_on_source(heat, image)
    assert values.shape == (6, 5, 1) and np.array_equal(affine, np.diag([-2.0, 3, 1, 1]))
    np.testing.assert_allclose(values[..., 0], heat[0], atol=1e-6)


def test_a_map_of_an_unknown_grid_is_refused():
    for image in (torch.zeros(1, 4, 4, 4), MetaTensor(torch.zeros(1, 4, 4, 4))):
        with pytest.raises(TomokitError, match="a map needs an image as LoadImaged gives it"):
            place_on_source(torch.zeros(1, 4, 4, 4), image)


def test_cases_are_spread_over_those_there_are():
    entries = [{"case": f"c{number}", "label": number % 2} for number in range(10)]
    cases = {"training": entries, "validation": [], "test": entries[:2]}
    found = list_explained(explained_cases(cases, "training"), 4)
    assert [entry["case"] for entry in found] == ["c0", "c3", "c6", "c9"]
    assert list_explained(explained_cases(cases)) == [{"case": "c0", "truth": 0}, {"case": "c1", "truth": 1}]
    assert len(list_explained(explained_cases(cases, "training"), 1)) == 1
    with pytest.raises(TomokitError, match="`explained` must be 1 case or more, got 0"):
        list_explained(entries, 0)
    with pytest.raises(TomokitError, match="`of` must be one of training, validation, test, got 'tests'"):
        explained_cases(cases, "tests")
    with pytest.raises(TomokitError, match="the run's split has no validation case to explain"):
        explained_cases(cases, "validation")


def test_what_can_not_be_explained_is_told_before_anything_runs(tmp_path):
    given = (None, tmp_path, tmp_path, "best", {"0": "a", "1": "b"})
    with pytest.raises(TomokitError, match="of one class per case, the run's `task` is 'value'"):
        attach_explanations(*given, task="value")
    with pytest.raises(TomokitError, match="`tolerance_mm` must be 0 or more, got -2"):
        attach_explanations(*given, tolerance_mm=-2)
    with pytest.raises(TomokitError, match="got 'lime'"):
        attach_explanations(*given, method="lime")


class Sums(nn.Module):
    """Gives the image's sum, and that of its measures."""

    def forward(self, image, measures):
        return torch.stack([image.flatten(1).sum(1), measures.sum(1)], 1)


def test_what_a_network_takes_beside_the_image_is_held():
    network = GivenInputs(Sums(), [torch.tensor([[3.0, 4.0]])])
    images = torch.ones(5, 1, 2, 2) * torch.arange(5.0).reshape(5, 1, 1, 1)
    assert network(images).tolist() == [[4.0 * number, 7.0] for number in range(5)]


def test_the_checks_of_several_cases_are_averaged():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    samples = [Sample(network, torch.rand(1, 1, 8, 8), number) for number in (0, 1)]
    explain = make_explainer("occlusion")
    found = check_weights(samples, explain, seed=3)
    single = [randomisation_check(explain, network, [own.image], [own.class_index], seed=3) for own in samples]
    assert found.layers == (1, 2)
    assert found.correlations == pytest.approx(np.mean([own.correlations for own in single], axis=0))


def test_maps_that_ignore_the_network_are_told(write_volume, tmp_path, caplog, capsys):
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    entries = {"a": {"case": "a", "image": write_volume("a.nii.gz", np.zeros((8, 8, 1), np.float32))}}
    setting = Setting(lambda network, image, number: image[0], ["x", "y"], tmp_path, [], 0.0, 0)
    areas = dict.fromkeys(("insertion", "deletion", "random_insertion", "random_deletion"), 0.5)
    rows = [{"case": "a", "patient": "a", "class": "x", "probability": 0.5} | areas]
    with caplog.at_level("INFO"):
        _finish(rows, [Sample(network, torch.rand(1, 1, 8, 8), 0)], entries, setting, {"method": "edges"})
    assert "the map does not depend on the weights" in caplog.text and "a is a single slice" in caplog.text
    content = json.loads((tmp_path / "explanations.json").read_text())
    assert content["randomisation"] == {
        "layers": [1, 2],
        "correlations": [1, 1],
        "cases": 1,
        "verdict": "does not depend on the weights",
    }
    assert "picture" not in content and "explanations.png" not in capsys.readouterr().out


def test_the_gain_over_a_random_order_is_summarised():
    areas = {"insertion": 0.75, "deletion": 0.25, "random_insertion": 0.5, "random_deletion": 0.625}
    rows = [{"patient": "a", **areas, "hit": 1.0, "energy": 0.5}, {"patient": "b", **areas}]
    found = summarise_maps(rows)
    assert found["insertion_gain"]["mean"] == 0.25 and found["deletion_gain"]["mean"] == 0.375
    assert found["insertion"] == {"mean": 0.75, "ci95": [0.75, 0.75], "n": 2, "cases": 2}
    assert found["hit"] == {"mean": 1, "ci95": None, "n": 1, "cases": 1}
    assert "hit" not in summarise_maps(rows[1:])


def test_the_picture_shows_wrong_cases_first():
    rows = [{"case": f"c{number}", "class": "a", "truth": "b" if number % 2 else "a"} for number in range(10)]
    assert [row["case"] for row in pick_explained(rows)] == ["c1", "c3", "c5", "c0", "c2", "c4"]
    assert [row["case"] for row in pick_explained(rows[1::2])] == ["c1", "c3", "c5", "c7", "c9"]
    assert [row["case"] for row in pick_explained([{"case": "c0", "class": "a"}])] == ["c0"]
