"""The way back: a prediction lies exactly on its source, whatever the source's grid."""

import monai.bundle
import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from bundle_runs import config
from grids import oblique_affine
from monai.inferers import SimpleInferer
from monai.transforms import LoadImaged

from tomokit.engines.checkpoints import save
from tomokit.errors import TomokitError
from tomokit.inference import (
    MirroredInferer,
    MixedPrecisionInferer,
    WritePredictiond,
    finish_writing,
    list_inputs,
    write_on_source_grid,
)
from tomokit.inference.read_ahead import ReadAhead
from tomokit.inputs import list_images
from tomokit.memory import lacks_memory
from tomokit.reading import ScanReader, read_scan
from tomokit.volumes import itk_image

SHAPE = (30, 26, 22)
CENTRE = np.array([12.0, 15.0, 9.0])  # voxels, away from the middle of every axis
RADIUS_MM = 12.0


def sphere(affine: np.ndarray) -> np.ndarray:
    """Return a ball (X, Y, Z) of `RADIUS_MM` around the voxel `CENTRE`, bright with a smooth edge."""
    points = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) - CENTRE
    distance = np.linalg.norm(points @ affine[:3, :3].T, axis=-1)
    return np.clip((RADIUS_MM - distance) / 3 + 0.5, 0, 1).astype(np.float32)


@pytest.fixture
def predict(tmp_path):
    """Return a function that runs the real inference config with a network that only thresholds at one half."""

    def run(source: str, spacing, files=(), **more) -> nibabel.Nifti1Image:
        weights = {"weight": torch.tensor([-40.0, 40.0]).reshape(2, 1, 1, 1, 1), "bias": torch.tensor([20.0, -20.0])}
        save(weights, tmp_path / "run" / "checkpoints" / "best.pt")
        monai.bundle.run(
            config_file=config("segmentation", "train", "inference", *files),
            run_dir=str(tmp_path / "run"),
            input=source,
            spacing=list(spacing),
            labels={"0": "background", "1": "ball"},
            network_def={"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1},
            intensity={"_target_": "Identityd", "keys": "image"},
            patch_size=[16, 16, 16],
            minimum_size=[0, 0, 24],
            **more,
        )
        written = tmp_path / "run" / "inference" / "scan.nii.gz"
        return nibabel.load(written) if written.is_file() else None

    return run


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR", "SRA"])
def test_on_its_own_spacing_the_prediction_is_the_shape_voxel_by_voxel(codes, predict, write_volume):
    affine = oblique_affine(codes, SHAPE)
    image = sphere(affine)
    source = write_volume("scan.nii.gz", image, affine)
    spacing = nibabel.affines.voxel_sizes(nibabel.as_closest_canonical(nibabel.load(source)).affine)
    prediction = predict(source, spacing)
    assert np.array_equal(prediction.affine, nibabel.load(source).affine)
    assert np.array_equal(np.asanyarray(prediction.dataobj), (image > 0.5).astype(np.uint8))


def test_an_oblique_lps_source_and_its_prediction_agree_in_simpleitk(predict, write_volume, tmp_path):
    affine = oblique_affine("LPS", SHAPE)
    image = sphere(affine)
    source = write_volume("scan.nii.gz", image, affine)
    predict(source, (2.0, 2.0, 2.0))
    scan = SimpleITK.ReadImage(source)
    found = SimpleITK.ReadImage(str(tmp_path / "run" / "inference" / "scan.nii.gz"))
    for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(found, get)() == pytest.approx(getattr(scan, get)(), abs=1e-6)
    voxels = SimpleITK.GetArrayFromImage(found).transpose(2, 1, 0)  # (z, y, x) to (x, y, z)
    truth = SimpleITK.GetArrayFromImage(scan).transpose(2, 1, 0) > 0.5
    assert 2 * (voxels.astype(bool) & truth).sum() / (voxels.sum() + truth.sum()) > 0.97
    statistics = SimpleITK.LabelShapeStatisticsImageFilter()
    statistics.Execute(SimpleITK.Cast(found, SimpleITK.sitkUInt8))
    ras = affine @ [*CENTRE, 1]
    assert statistics.GetCentroid(1) == pytest.approx((-ras[0], -ras[1], ras[2]), abs=0.3)  # SimpleITK is LPS
    ball_ml = 4 / 3 * np.pi * RADIUS_MM**3 / 1000
    assert statistics.GetPhysicalSize(1) / 1000 == pytest.approx(ball_ml, rel=0.05)


def test_a_prediction_of_another_shape_is_refused(write_volume, tmp_path):
    source = write_volume("scan.nii.gz", np.zeros((4, 5, 6), np.float32))
    with pytest.raises(TomokitError, match=r"shape \(6, 5, 4\) does not lie on .*\(4, 5, 6\)"):
        write_on_source_grid(np.zeros((6, 5, 4), np.uint8), source, tmp_path / "out.nii.gz")


def test_a_source_is_never_overwritten(predict, write_volume, tmp_path):
    source = write_volume("scan.nii.gz", np.zeros((4, 5, 6), np.float32))
    with pytest.raises(TomokitError, match=r"would overwrite its source .*scan\.nii\.gz"):
        write_on_source_grid(np.zeros((4, 5, 6), np.uint8), source, source)
    before = (tmp_path / "scan.nii.gz").read_bytes()
    with pytest.raises(RuntimeError) as caught:
        predict(source, (1, 1, 1), output_dir=str(tmp_path))
    assert "holds the input scan.nii.gz; give another `output_dir`" in str(caught.value.__cause__)
    assert (tmp_path / "scan.nii.gz").read_bytes() == before


def test_many_labels_take_the_next_integer_type_and_scaled_sources_stay_labels(write_volume, tmp_path):
    source = write_volume("scan.nii.gz", np.zeros((2, 2, 2), np.float32))
    image = nibabel.load(source)
    image.header.set_slope_inter(0.5, -3)
    nibabel.save(image, tmp_path / "scaled.nii.gz")
    labels = np.arange(8).reshape(2, 2, 2) * 100
    write_on_source_grid(labels, tmp_path / "scaled.nii.gz", tmp_path / "out.nii.gz")
    written = nibabel.load(tmp_path / "out.nii.gz")
    assert written.get_data_dtype() == np.uint16
    assert np.array_equal(written.get_fdata(), labels)


def test_inputs_are_a_file_several_or_a_folder(write_volume, tmp_path):
    a, b = (write_volume(f"in/{name}.nii.gz", np.zeros((2, 2, 2), np.float32)) for name in "ab")
    assert [entry["case"] for entry in list_inputs(tmp_path / "in")] == ["a", "b"]
    assert list_inputs([b, a]) == [{"case": "b", "image": b}, {"case": "a", "image": a}]
    assert list_inputs([[a, b]]) == [{"case": "a", "image": [a, b]}]
    series = tmp_path / "1.2.840.1"
    series.mkdir()
    assert list_inputs([[str(series), a]]) == [{"case": "1.2.840.1", "image": [str(series), a]}]
    c = write_volume("other/a.nii.gz", np.zeros((2, 2, 2), np.float32))
    with pytest.raises(TomokitError, match="a stands 2 times"):
        list_inputs([a, c])
    with pytest.raises(TomokitError, match=r"input .*nowhere does not exist"):
        list_inputs(tmp_path / "nowhere")
    (tmp_path / "x.png").touch()
    with pytest.raises(TomokitError, match=r"x\.png is no scan \(.nii.gz"):
        list_inputs(tmp_path / "x.png")
    assert list_images(tmp_path / "x.png", pictures=True) == [{"case": "x", "image": str(tmp_path / "x.png")}]
    (tmp_path / "empty").mkdir()
    with pytest.raises(TomokitError, match=r"no scan .* in .*empty"):
        list_inputs(tmp_path / "empty")


def test_cases_of_several_modalities_are_the_numbered_files_of_a_folder(write_volume, tmp_path):
    names = [f"{case}_{number:04d}" for case in "ab" for number in (0, 1)]
    files = [write_volume(f"in/{name}.nii.gz", np.zeros((2, 2, 2), np.float32)) for name in names]
    expected = [{"case": "a", "image": files[:2]}, {"case": "b", "image": files[2:]}]
    assert list_images(tmp_path / "in", channels=2) == expected
    series = [tmp_path / name for name in ("1.2.840.1", "1.2.840.2")]
    for folder in series:
        folder.mkdir()
    pairs = [[str(folder), files[1]] for folder in series]
    assert [case["case"] for case in list_images(pairs, channels=2)] == ["1.2.840.1", "1.2.840.2"]
    with pytest.raises(TomokitError, match="a has 2 modalities, the network takes 1"):
        list_images([files[:2]])
    with pytest.raises(TomokitError, match="a lacks a modality, which only a fusion"):
        list_images(tmp_path / "in", channels=3)
    write_volume("in/c.nii.gz", np.zeros((2, 2, 2), np.float32))
    with pytest.raises(TomokitError, match=r"the scans in .*in must be called case_0000 to case_0001"):
        list_images(tmp_path / "in", channels=2)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("can't start new thread"),
        MemoryError(),
    ],
)
def test_a_scan_too_large_to_be_resampled_is_told_in_one_line(error):
    class Data(list):
        def __getitem__(self, _):
            try:
                raise error
            except (RuntimeError, MemoryError) as cause:
                raise RuntimeError("applying transform <…>") from cause

    if isinstance(error, MemoryError):  # what names the file is not said anew
        explained = TomokitError("the memory does not suffice to read scan.nii.gz")
        explained.__cause__ = error
        assert not lacks_memory(explained)
    with pytest.raises(TomokitError, match=r"^the free memory \([\d.]+ GB\) does not suffice to read and resample"):
        list(ReadAhead(Data([1]), batch_size=1))


@pytest.mark.parametrize(("suffix", "written"), [(".nrrd", ".nrrd"), (".mha", ".mha"), (".mhd", ".mha")])
def test_another_format_gets_its_own_back_with_its_fields(suffix, written, predict, tmp_path):
    affine = oblique_affine("LPS", SHAPE)
    image = itk_image(sphere(affine), affine)
    image.SetMetaData("scanner", "a fine one")
    SimpleITK.WriteImage(image, str(tmp_path / f"scan{suffix}"))
    predict(str(tmp_path / f"scan{suffix}"), (2.0, 2.0, 2.0))
    labels = SimpleITK.ReadImage(str(tmp_path / "run" / "inference" / f"scan{written}"))
    assert labels.GetPixelID() == SimpleITK.sitkUInt8 and labels.GetMetaData("scanner") == "a fine one"
    for way in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
        assert np.allclose(getattr(labels, way)(), getattr(image, way)())
    truth = SimpleITK.GetArrayFromImage(image) > 0.5
    found = SimpleITK.GetArrayFromImage(labels) > 0
    assert 2 * (truth & found).sum() / (truth.sum() + found.sum()) > 0.95


def test_a_dicom_folder_gets_a_label_map_on_its_series(mirror, predict, tmp_path):
    (tmp_path / "scan").symlink_to(mirror / "reference_ct_mr" / "ct_dicom")
    prediction = predict(str(tmp_path / "scan"), (2.0, 2.0, 2.0))
    series = read_scan(tmp_path / "scan")
    assert prediction.shape == series.array.shape
    assert np.allclose(prediction.affine, series.affine, atol=1e-4)
    labels = np.asanyarray(prediction.dataobj)
    bright, dark = series.array > 300, series.array < -500
    assert labels[bright].mean() > 0.9 and labels[dark].mean() < 0.05


def test_maps_are_written_beside(write_volume, predict, tmp_path):
    affine = oblique_affine("LPS", SHAPE)
    source = write_volume("scan.nii.gz", sphere(affine), affine)
    more = {"maps": {"entropy": "entropy", "ball": 1}, "files": ["modes/maps"]}
    prediction = np.asanyarray(predict(source, (2.0, 2.0, 2.0), **more).dataobj)
    maps = {name: nibabel.load(tmp_path / "run" / "maps" / f"scan_{name}.nii.gz") for name in ("entropy", "ball")}
    assert all(np.array_equal(one.affine, nibabel.load(source).affine) for one in maps.values())
    ball, entropy = maps["ball"].get_fdata(), maps["entropy"].get_fdata()
    assert np.array_equal(ball > 0.5, prediction > 0)
    assert entropy.min() == 0 and 0.5 < entropy.max() <= 1
    assert entropy[prediction == 0].mean() < 0.2


def test_a_label_map_that_could_not_be_written_is_told(tmp_path, caplog, write_volume):
    source = write_volume("scan.nii.gz", np.zeros((4, 5, 6), np.float32))
    image = LoadImaged("image", reader=ScanReader(), ensure_channel_first=True)({"image": source})["image"]
    write = WritePredictiond("pred", tmp_path / "out")
    write({"case": "a", "image": image, "pred": torch.zeros(1, 6, 5, 4)})
    with pytest.raises(TomokitError, match=r"of shape \(6, 5, 4\) does not lie on"):
        finish_writing()
    assert "out/a.nii.gz was not written: a prediction of shape (6, 5, 4)" in caplog.text
    write({"case": "b", "image": image, "pred": torch.ones(1, 4, 5, 6)})
    finish_writing()
    assert nibabel.load(tmp_path / "out" / "b.nii.gz").get_fdata().all()


def test_mirrored_passes_are_flipped_back_and_averaged():
    image = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(1, 1, 2, 3, 4)
    along_x = torch.arange(2.0).reshape(1, 1, 2, 1, 1)
    seen = []

    def network(x):
        seen.append(x)
        return x + 10 * along_x  # what is to the right gets more

    whole = MirroredInferer(SimpleInferer(), [0, 2])(image, network)
    assert [tuple(axis for axis in (2, 4) if torch.equal(x, image.flip(axis))) for x in seen[:3]] == [(), (2,), (4,)]
    assert len(seen) == 4 and torch.equal(seen[3], image.flip(2, 4))
    torch.testing.assert_close(whole, image + 5)  # the mean of 0 and 10 on both sides
    torch.testing.assert_close(MirroredInferer(SimpleInferer(), [])(image, network), image + 10 * along_x)


def test_mirrored_passes_of_a_whole_image_are_averaged_as_they_are():
    image = torch.arange(6, dtype=torch.float32).reshape(1, 2, 3)  # two channels along one axis
    left = MirroredInferer(SimpleInferer(), [0])(image, lambda x: x[..., 0])
    torch.testing.assert_close(left, image.mean(-1))  # the first and the last place


def test_logits_of_several_heads_stay_a_list_in_float32():
    inferer = MixedPrecisionInferer(SimpleInferer(), torch.bfloat16)
    heads = inferer(torch.ones(1, 1, 4, 4, 4), lambda x: [x.bfloat16(), x[..., ::2].bfloat16()])
    assert [head.dtype for head in heads] == [torch.float32] * 2 and heads[1].shape == (1, 1, 4, 4, 2)


@pytest.mark.parametrize(
    ("options", "width", "dtype"),
    [
        ({"kernel_size": 3, "padding": 1}, 3, torch.bfloat16),
        ({"kernel_size": 3, "padding": 1}, 2, torch.float32),
        ({"kernel_size": 3, "padding": 2, "dilation": 2}, 4, torch.float32),
        ({"kernel_size": 1, "stride": 2}, 1, torch.float32),
        ({"kernel_size": (1, 3, 3), "padding": "same"}, 1, torch.bfloat16),
    ],
)
def test_in_training_convolutions_of_narrow_maps_stay_in_float32(options, width, dtype):
    network = torch.nn.Conv3d(2, 3, **options)
    seen = []
    network.register_forward_hook(lambda module, given, found: seen.append(found.dtype))
    inferer = MixedPrecisionInferer(SimpleInferer(), torch.bfloat16)
    image = torch.rand(1, 2, width, 8, 8)
    inferer(image, network)
    with torch.no_grad():
        inferer(image, network)
    assert seen == [dtype, torch.bfloat16]


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_gradients_in_low_precision_are_those_of_float32(width):
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Conv3d(8, 16, 3, padding=1), torch.nn.Conv3d(16, 16, 3, padding=1))
        image = torch.randn(4, 8, width, width, width)
        MixedPrecisionInferer(SimpleInferer(), dtype)(image, network).square().sum().backward()
        gradients.append(network[0].weight.grad)
    error = torch.linalg.norm(gradients[1] - gradients[0]) / torch.linalg.norm(gradients[0])
    assert error < 0.02
