"""Several modalities of unequal sampling on one grid: known truth, parity with SimpleITK, absent ones, and runs."""

import csv
import json
import shutil

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from bundle_runs import follow, train
from monai.data import DataLoader, MetaTensor
from monai.transforms import Compose, EnsureTyped, NormalizeIntensityd
from scipy.spatial.transform import Rotation

from tomokit import phantoms
from tomokit.caching import cached_dataset
from tomokit.checks import check_cases, check_dataset
from tomokit.datasets import case_name, read_entries
from tomokit.errors import TomokitError
from tomokit.files import write_json
from tomokit.inputs import list_cases
from tomokit.modalities import LoadModalitiesd
from tomokit.rivals.cases import first_path
from tomokit.runs import hash_cases
from tomokit.volumes import itk_image

NO_RECORD = {"fields": []}


def grid(degrees, axes, sizes, corner):
    """Return an affine whose index axes lie along these, turned, with voxels of these sizes."""
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.array(axes, float).T * sizes
    affine[:3, 3] = corner
    return affine


# T1 with the axes L, S, A; FLAIR in thick slices, tilted otherwise, which reaches beyond T1 on every side
T1 = grid((3, -2, 4), [(-1, 0, 0), (0, 0, 1), (0, 1, 0)], (1.0, 1.0, 1.2), (40, -20, 30))
FLAIR = grid((-4, 3, 2), np.eye(3), (1.1, 1.1, 3.0), (5, -40, 8))
SHAPES = (24, 26, 22), (48, 52, 20)
SPACING = [1.5, 1.5, 2.0]


def world(affine, shape):
    """Return the world coordinates (3, X, Y, Z) of each voxel."""
    return np.tensordot(affine[:3, :3], np.indices(shape), 1) + affine[:3, 3].reshape(3, 1, 1, 1)


def plane(points, slopes=(0.5, -0.25, 1.0)):
    """Return a value that grows in a straight line, which an interpolation between voxels gives exactly."""
    return np.tensordot(np.array(slopes), points, 1) + 7


def inside(affine, shape, points):
    """Return which points lie between the voxels' centres of a grid."""
    places = np.tensordot(np.linalg.inv(affine)[:3], np.concatenate([points, np.ones((1, *points.shape[1:]))]), 1)
    limits = np.array(shape).reshape(3, 1, 1, 1) - 1
    return ((places >= -1e-3) & (places <= limits + 1e-3)).all(0)  # affines are stored in single precision


@pytest.fixture
def scans(write_volume):
    """Return the paths of two scans of one place, each on its own grid, whose values are planes in space."""
    return [
        write_volume(f"a_{number:04d}.nii.gz", plane(world(affine, shape)).astype(np.float32), affine)
        for number, (affine, shape) in enumerate(zip((T1, FLAIR), SHAPES, strict=True))
    ]


def load(paths, spacing=SPACING, **more):
    return LoadModalitiesd("image", spacing, len(paths))({"image": paths, "case": "a", **more})


def test_both_are_on_the_first_one_s_grid_at_the_spacing(scans):
    item = load(scans, label=1)
    image = item["image"]
    assert isinstance(image, MetaTensor) and image.dtype == torch.float32 and item["label"] == 1
    assert item["presence"].tolist() == [1, 1] and item["presence"].dtype == torch.float32
    affine = image.affine.numpy()
    assert "".join(nibabel.aff2axcodes(affine)) == "RAS"
    np.testing.assert_allclose(nibabel.affines.voxel_sizes(affine), SPACING, atol=1e-6)
    points = world(affine, image.shape[1:])
    for number, (own, shape) in enumerate(zip((T1, FLAIR), SHAPES, strict=True)):
        known = inside(own, shape, points)
        assert known.mean() > 0.7
        np.testing.assert_allclose(image.as_tensor()[number].numpy()[known], plane(points)[known], atol=2e-3)


def test_beyond_its_edge_a_modality_keeps_its_last_value(write_volume):
    first = write_volume("b_0000.nii.gz", np.zeros((9, 9, 9), np.float32), np.diag([1.0, 1, 1, 1]))
    shifted = np.diag([1.0, 1, 1, 1])
    shifted[0, 3] = 4
    second = write_volume("b_0001.nii.gz", plane(world(np.eye(4), (9, 9, 9)), (1, 0, 0)).astype(np.float32), shifted)
    row = load([first, second], [1, 1, 1])["image"].as_tensor()[1, :, 4, 4].numpy()
    np.testing.assert_allclose(row, [7, 7, 7, 7, 7, 8, 9, 10, 11], atol=1e-4)


def test_values_are_simpleitk_s(scans, write_volume):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=SHAPES[1]).astype(np.float32)
    second = write_volume("noise_0001.nii.gz", noise, FLAIR)
    image = load([scans[0], second])["image"]
    affine = image.affine.numpy()
    target = itk_image(np.zeros(image.shape[1:], np.float32), affine)
    expected = sitk.Resample(itk_image(noise, FLAIR), target, sitk.Transform(), sitk.sitkLinear, 0.0)
    known = inside(FLAIR, SHAPES[1], world(affine, image.shape[1:]))
    assert known.mean() > 0.7
    wanted = sitk.GetArrayFromImage(expected).transpose(2, 1, 0)
    np.testing.assert_allclose(image.as_tensor()[1].numpy()[known], wanted[known], atol=1e-3)


@pytest.mark.parametrize("absent", [0, 1])
def test_an_absent_modality_is_0_and_the_other_gives_the_grid(scans, absent):
    paths = [None if place == absent else path for place, path in enumerate(scans)]
    item, whole = load(paths), load(scans)
    assert item["presence"].tolist() == [float(place != absent) for place in range(2)]
    assert not item["image"][absent].any()
    own, shape = ((T1, SHAPES[0]), (FLAIR, SHAPES[1]))[1 - absent]
    affine = item["image"].affine.numpy()
    points = world(affine, item["image"].shape[1:])
    known = inside(own, shape, points)
    np.testing.assert_allclose(item["image"].as_tensor()[1 - absent].numpy()[known], plane(points)[known], atol=2e-3)
    if absent == 1:
        assert torch.equal(item["image"][0], whole["image"][0]) and np.allclose(affine, whole["image"].affine)
    normal = NormalizeIntensityd("image", channel_wise=True)(item)["image"]
    assert normal.isfinite().all() and not normal[absent].any()


def test_one_modality_may_be_a_path_alone(scans):
    item = LoadModalitiesd("image", SPACING, 1)({"image": scans[0]})
    assert torch.equal(item["image"][0], load(scans)["image"][0]) and item["presence"].tolist() == [1]


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_cases_with_absent_modalities_are_cached_and_make_batches(scans, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("TOMOKIT_CACHE", str(tmp_path / "cache"))
    entries = [{"case": "a", "image": scans}, {"case": "b", "image": [scans[0], None]}]
    steps = [LoadModalitiesd("image", SPACING, 2), EnsureTyped("image", track_meta=False)]
    dataset = cached_dataset(entries, Compose(steps), cache)
    for _ in range(2):
        (batch,) = DataLoader(dataset, batch_size=2)
        assert batch["image"].shape[:2] == (2, 2) and batch["presence"].tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([None, None], r"a has 2 modalities, 0 of them there; list 2 paths under `image`, null for an absent one"),
        (["x.nii.gz"], "a has 1 modalities, 1 of them there; list 2 paths"),
        (["x.nii.gz"] * 3, "a has 3 modalities, 3 of them there; list 2 paths"),
    ],
)
def test_a_case_without_its_modalities_is_refused(paths, message):
    with pytest.raises(TomokitError, match=message):
        LoadModalitiesd("image", SPACING, 2)({"image": paths, "case": "a"})


def test_several_channels_in_a_file_and_several_keys_are_refused(write_volume):
    path = write_volume("c.nii.gz", np.zeros((4, 4, 4, 2), np.float32))
    with pytest.raises(TomokitError, match=r"a: .*c\.nii\.gz holds 2 channels; store each modality as one volume"):
        load([path])
    with pytest.raises(TomokitError, match=r"got the keys \['image', 'label'\]; give one key"):
        LoadModalitiesd(["image", "label"], SPACING, 2)


# Data sets


def write_cases(folder, images, labels=None):
    """Write a dataset.json whose cases have these images and the classes 0 and 1 in turn."""
    training = [{"image": image, "label": number % 2} for number, image in enumerate(images)]
    content = {"labels": {"0": "well", "1": "ill"}, "modality": {"0": "T1", "1": "FLAIR"}, "training": training}
    write_json(folder / "dataset.json", content)
    return folder


def test_a_case_is_named_by_the_first_modality_that_is_there(tmp_path):
    assert case_name(["a_0000.nii.gz", None]) == case_name([None, "a_0001.nii.gz"]) == "a"
    assert case_name(["t1/x.nii", None]) == "x" and case_name([None, "b_0000.nii.gz"]) == "b_0000"
    entries = read_entries(write_cases(tmp_path, [["a_0000.nii", None], [None, "b_0001.nii"]]))
    assert [entry["case"] for entry in entries] == ["a", "b"]
    assert entries[1]["image"] == [None, str(tmp_path / "b_0001.nii")]
    assert first_path(entries[1]["image"]) == entries[1]["image"][1]


@pytest.mark.parametrize("image", [[None], [None, None], [], None, [None, ""], [None, 3]])
def test_a_case_without_any_image_is_malformed(image, tmp_path):
    with pytest.raises(TomokitError, match="`image` must be a path or a list of paths"):
        read_entries(write_cases(tmp_path, [image]))


def test_other_bundles_refuse_absent_modalities_and_unequal_grids(scans, tmp_path):
    folder = write_cases(tmp_path / "set", [scans, [scans[0].replace("a_", "c_"), None]])
    shutil.copy(scans[0], scans[0].replace("a_", "c_"))
    cases = {"training": read_entries(folder)}
    given = (cases, folder, {"0": "well", "1": "ill"}, ["T1", "FLAIR"])
    with pytest.raises(TomokitError) as caught:
        check_cases(*given, task="classes")
    for text in ("c: its image 1 is absent", "bundle fusion with modes/modalities", "a_0000.nii.gz", "differ"):
        assert text in str(caught.value)
    check_cases(*given, task="classes", own_grids=True)


def test_the_check_warns_of_absent_modalities_and_unequal_grids(scans, tmp_path):
    folder = write_cases(tmp_path, [scans, [None, scans[1].replace("a_", "c_")]])
    noise = np.random.default_rng(1).normal(size=SHAPES[1]).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(noise, FLAIR), scans[1].replace("a_", "c_"))
    report = check_dataset(folder, progress=False)
    kinds = {finding.kind: finding for finding in report.findings}
    assert kinds["own_grids"].case == "a" and kinds["modality_absent"].case == "c"
    assert report.exit_code == 0 and {finding.severity for finding in report.findings} == {"warning"}


def test_the_hash_of_cases_knows_absent_files_and_what_is_learned(scans):
    whole = {"case": "a", "label": 0, "image": scans}
    hashes = [
        hash_cases({"training": [entry]})
        for entry in (
            whole,
            whole | {"image": [scans[0], None]},
            whole | {"image": [None, scans[1]]},
            whole | {"clinical": {"age": 3}},
            whole | {"clinical": {"age": 4}},
            whole | {"slice_labels": [0, 1]},
            whole | {"change": -0.03},
        )
    ]
    assert len(set(hashes)) == 7
    assert hash_cases({"training": [dict(whole)]}) == hashes[0]


# New cases


def test_a_folder_s_files_are_grouped_by_the_number_of_their_modality(scans, tmp_path):
    for name in ("b_0001", "c_0000"):
        shutil.copy(scans[1], tmp_path / f"{name}.nii.gz")
    cases = list_cases(str(tmp_path), NO_RECORD, channels=2, own_grids=True)
    assert [case["case"] for case in cases] == ["a", "b", "c"]
    present = [[path is not None for path in case["image"]] for case in cases]
    assert present == [[True, True], [False, True], [True, False]]
    assert list_cases([scans], NO_RECORD, channels=2)[0]["image"] == scans
    assert list_cases([[None, scans[1]]], NO_RECORD, channels=2, own_grids=True)[0]["case"] == "a"
    with pytest.raises(TomokitError) as caught:
        list_cases(str(tmp_path), NO_RECORD, channels=2)
    assert "b lacks a modality, which only a fusion trained with modes/modalities.yaml bears" in str(caught.value)


def test_what_can_not_be_grouped_is_told(scans, tmp_path):
    with pytest.raises(TomokitError, match="is no folder, and a case has 2 modalities; give a list of their files"):
        list_cases(scans[0], NO_RECORD, channels=2)
    with pytest.raises(TomokitError, match="a has 1 modalities, the network takes 2"):
        list_cases([[scans[0]]], NO_RECORD, channels=2)
    with pytest.raises(TomokitError, match=r"a case has no scan in \[None, None\]"):
        list_cases([[None, None]], NO_RECORD, channels=2, own_grids=True)
    with pytest.raises(TomokitError, match="a stands 2 times"):
        list_cases([scans, scans], NO_RECORD, channels=2)
    with pytest.raises(TomokitError, match=r"nowhere_0000\.nii\.gz does not exist"):
        list_cases([[str(tmp_path / "nowhere_0000.nii.gz"), None]], NO_RECORD, channels=2, own_grids=True)
    shutil.copy(scans[0], tmp_path / "a_0002.nii.gz")
    with pytest.raises(TomokitError, match="must be called case_0000 to case_0001, by the number of their modality"):
        list_cases(str(tmp_path), NO_RECORD, channels=2)


# Runs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return the folder of a small set of bodies in T1 and FLAIR, of which some lack one or the other."""
    folder = tmp_path_factory.mktemp("data") / "set"
    phantoms.make_modalities_set(folder, cases=18, test_cases=6, size=16, progress=False)
    content = json.loads((folder / "dataset.json").read_text())
    for number, entry in enumerate([*content["training"], *content["test"]]):
        if number % 3 < 2:
            entry["image"][number % 3] = None
    write_json(folder / "dataset.json", content)
    return folder


def read_table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_modalities_train_are_scored_and_used_with_any_of_them_missing(data, tmp_path):
    layers = ("data/phantom-modalities", "modes/modalities")
    run = train("fusion", tmp_path / "run", *layers, dataset_dir=str(data), image_size=[12, 12, 12])
    follow("fusion", run, "evaluate")
    rows = read_table(run / "cases.csv")
    assert len(rows) == 6 and "histogram" in json.loads((run / "metrics.json").read_text())["rivals"]
    follow("fusion", run, "inference")
    assert [row["p_ill"] for row in read_table(run / "inference" / "classes.csv")] == [row["p_ill"] for row in rows]
    scans = tmp_path / "scans"
    scans.mkdir()
    for entry in read_entries(data)[-6:]:
        for path in entry["image"]:
            if path is not None:
                shutil.copy(path, scans)
    follow("fusion", run, "inference", input=str(scans))
    assert [row["p_ill"] for row in read_table(run / "inference" / "classes.csv")] == [row["p_ill"] for row in rows]
    told = json.loads((run / "configs" / "metadata.json").read_text())["network_data_format"]["inputs"]
    assert told["image"]["num_channels"] == 2 and "record" not in told


def test_the_phantoms_modalities_lie_on_one_grid(tmp_path):
    phantoms.make_modalities_set(tmp_path, cases=4, test_cases=1, size=32, progress=False)
    for entry in read_entries(tmp_path):
        case = phantoms.make_modalities_case(32, index=int(entry["case"].removeprefix("case_")))
        image = LoadModalitiesd("image", [1.0, 1.0, 1.0], 2)({"image": entry["image"]})["image"]
        place = np.linalg.solve(image.affine.numpy(), [*case.truth["centre_mm"], 1])[:3].round().astype(int)
        t1, flair = image.as_tensor().numpy()
        middle = tuple(slice(p - 1, p + 2) for p in place.tolist())
        assert np.median(t1[middle]) < 0.75 * np.median(t1) and np.median(flair[middle]) > 1.2 * np.median(flair)
