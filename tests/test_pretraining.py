import json
import logging
import math
import zipfile

import monai.bundle
import numpy as np
import pytest
import torch
from bundle_runs import follow, train, weights
from PIL import Image
from set_files import make_items, write_set

from tomokit import phantoms
from tomokit.augmentation import (
    BatchMaskedBlocksd,
    BatchRandBentIntensityd,
    BatchRandPaintedBoxesd,
    BatchRandShuffledBlocksd,
)
from tomokit.augmentation.distortions import bend_intensity, block_numbers, boxes_mask, shuffle_blocks
from tomokit.datasets import read_description, select_cases
from tomokit.errors import TomokitError
from tomokit.files import write_json
from tomokit.finetuning import load_pretrained
from tomokit.losses import HiddenVoxelsLoss
from tomokit.metrics import psnr
from tomokit.networks import LeanEncoder, LeanUNet
from tomokit.panels import middle_slice
from tomokit.release import release_run
from tomokit.restoration import (
    RestoredShare,
    draw_restorations,
    measure_restoration,
    restored_share,
    summarise_restoration,
)

DISTORTIONS = (BatchRandBentIntensityd, BatchRandShuffledBlocksd, BatchRandPaintedBoxesd, BatchMaskedBlocksd)
STAGES = {"filters": [4, 8, 8], "strides": [1, 2, 2], "kernel_size": [3, 3, 3]}


def images(batch=2, size=(12, 16, 10), channels=2):
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(0))


def distort(transform, image, seed=0):
    torch.manual_seed(seed)
    return transform({"image": image})["image"]


# ------------------------------------------------------------------------------------------- known truth


def test_a_straight_curve_changes_nothing_and_a_falling_one_mirrors_the_range():
    image = images(1)[0]
    rising = torch.linspace(0, 1, 5).expand(2, 5)
    torch.testing.assert_close(bend_intensity(image, rising), image, atol=1e-5, rtol=1e-5)
    low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
    torch.testing.assert_close(bend_intensity(image, 1 - rising), low + high - image, atol=1e-5, rtol=1e-5)


def test_a_curve_is_numpy_s_interpolation():
    image, heights = images(1, channels=1)[0], torch.tensor([[0.0, 0.5, 0.6, 1.0]])
    low, high = image.min().item(), image.max().item()
    expected = np.interp((image[0].numpy() - low) / (high - low), np.linspace(0, 1, 4), heights[0])
    found = bend_intensity(image, heights)
    np.testing.assert_allclose(found[0].numpy(), low + (high - low) * expected, atol=1e-5)


def test_blocks_are_numbered_by_hand():
    found = block_numbers((5, 4), (2, 3), (1, 0))
    assert found.tolist() == [[0, 0, 0, 1], [2, 2, 2, 3], [2, 2, 2, 3], [4, 4, 4, 5], [4, 4, 4, 5]]


def test_only_the_chosen_blocks_are_shuffled_and_keep_their_voxels():
    image = torch.arange(2 * 36.0).reshape(2, 6, 6)
    chosen = torch.tensor([True, False, False, False])
    order = torch.linspace(1, 0, 36).reshape(6, 6)  # turns a block round
    found = shuffle_blocks(image, (3, 3), (0, 0), chosen, order)
    expected = image.clone()
    expected[:, :3, :3] = image[:, :3, :3].flip((1, 2))
    assert torch.equal(found, expected)


def test_boxes_are_where_they_were_drawn():
    mask = boxes_mask((4, 5), torch.tensor([[0, 1], [3, 4]]), torch.tensor([[2, 2], [1, 1]]))
    assert mask.nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2], [3, 4]]


@pytest.mark.parametrize(("outside", "least", "most"), [(0.0, 0.003, 0.05), (1.0, 0.6, 0.95)])
def test_what_is_painted_is_inside_or_outside_the_box(outside, least, most):
    transform = BatchRandPaintedBoxesd("image", prob=1.0, outside_prob=outside, boxes=(1, 1))
    image = images(8, (20, 20, 20), 1)
    changed = distort(transform, image) != image
    shares = changed.float().mean((1, 2, 3, 4))
    assert shares.min() > least and shares.max() < most
    for own in changed[:, 0]:
        box = own if outside == 0 else ~own  # a box is the product of its shadows
        sides = [box.any(dim=axes) for axes in ((1, 2), (0, 2), (0, 1))]
        assert torch.equal(box, sides[0][:, None, None] & sides[1][:, None] & sides[2])


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_as_many_blocks_are_masked_as_asked_for(share):
    image = images(4, (32, 32, 32), 2)
    torch.manual_seed(0)
    result = BatchMaskedBlocksd("image", block=4, share=(share, share))({"image": image})
    hidden = result["mask"] > 0
    assert result["mask"].shape == (4, 1, 32, 32, 32) and hidden.float().mean().item() == pytest.approx(share, abs=0.05)
    means = image.mean((2, 3, 4), keepdim=True)
    assert torch.equal(result["image"], torch.where(hidden, means, image))


# -------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("kind", DISTORTIONS)
@pytest.mark.parametrize("size", [(12, 16, 10), (12, 16), (9, 7, 1)])
def test_shape_range_and_input_stay_and_the_draws_follow_the_seed(kind, size):
    image = images(3, size)
    before = image.clone()
    results = [distort(kind("image"), image, seed) for seed in (1, 1, 2)]
    assert torch.equal(image, before) and results[0].shape == image.shape and results[0].dtype == image.dtype
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    axes = tuple(range(2, image.ndim))
    assert (results[0].amax(axes) <= image.amax(axes) + 1e-5).all()
    assert (results[0].amin(axes) >= image.amin(axes) - 1e-5).all()


@pytest.mark.parametrize("kind", DISTORTIONS[:3])
def test_a_batch_is_distorted_as_its_images_are_one_after_the_other(kind):
    image = images(3)
    together = distort(kind("image", prob=0.7), image)
    torch.manual_seed(0)
    one_by_one = [kind("image", prob=0.7)({"image": own[None]})["image"] for own in image]
    assert torch.equal(together, torch.cat(one_by_one))


def test_shuffling_keeps_every_value():
    image = images()
    found = distort(BatchRandShuffledBlocksd("image", prob=1.0, share=1.0), image)
    assert not torch.equal(found, image)
    assert torch.equal(found.flatten(2).sort().values, image.flatten(2).sort().values)


def test_a_rising_curve_keeps_the_order_of_brightness():
    image = images(1, channels=1)
    found = distort(BatchRandBentIntensityd("image", prob=1.0, falling_prob=0.0), image)
    order = image.flatten().argsort()
    assert (found.flatten()[order].diff() >= -1e-5).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BatchRandBentIntensityd("image", points=1), "points must be at least 2, got 1"),
        (lambda: BatchRandBentIntensityd("image", prob=2), "prob must lie in 0–1, got 2"),
        (lambda: BatchRandBentIntensityd("image", falling_prob=-1), "falling_prob must lie in 0–1, got -1"),
        (lambda: BatchRandShuffledBlocksd("image", block_range=(0, 2)), r"block_range must be two .* got \(0, 2\)"),
        (lambda: BatchRandShuffledBlocksd("image", share=3), "share must lie in 0–1, got 3"),
        (lambda: BatchRandPaintedBoxesd("image", boxes=(3, 1)), r"boxes must be two numbers .* got \(3, 1\)"),
        (lambda: BatchRandPaintedBoxesd("image", inside_range=(0, 2)), r"inside_range must be .* got \(0, 2\)"),
        (lambda: BatchMaskedBlocksd("image", block=0), "block must be edges of at least 1 voxel, got 0"),
        (lambda: BatchMaskedBlocksd("image", share=(0.5, 1.5)), r"share must be two numbers .* got \(0.5, 1.5\)"),
    ],
)
def test_impossible_arguments_are_refused(make, message):
    with pytest.raises(TomokitError, match=message):
        make()


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_a_label_map_is_not_distorted(kind):
    with pytest.raises(TomokitError, match=rf"{kind.__name__} takes numbers with a fraction.*torch.uint8.*'image'"):
        kind("image")({"image": torch.zeros(1, 1, 4, 4, 4, dtype=torch.uint8)})


# ---------------------------------------------------------------------------------------------- measures


def test_the_loss_is_the_mean_error_of_hidden_voxels():
    outputs, clean = torch.zeros(1, 2, 2, 2), torch.full((1, 2, 2, 2), 3.0)
    hidden = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    clean[0, 1, 0, 0] = -1.0
    assert HiddenVoxelsLoss()(outputs, torch.cat([clean, hidden], 1)).item() == 2.0
    assert HiddenVoxelsLoss()(outputs, torch.cat([clean, 0 * hidden], 1)).item() == 0.0
    with pytest.raises(TomokitError, match=r"got shapes \(1, 2, 2, 2\) for \(1, 2, 2, 2\)"):
        HiddenVoxelsLoss()(outputs, clean)


def test_the_restored_share_is_1_for_the_truth_0_for_nothing_done_and_below_for_harm():
    clean = images(3, channels=1)
    distorted = clean + 1
    restored = torch.stack([clean[0], distorted[1], distorted[2] + 1])
    assert restored_share(restored, distorted, clean).tolist() == pytest.approx([1, 0, -1])
    assert restored_share(clean, clean, clean).isnan().all()


def test_only_hidden_voxels_count_where_there_is_a_map():
    clean = torch.zeros(1, 1, 2, 2)
    target = torch.cat([clean, torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])], 1)
    restored = torch.tensor([[[[1.0, 9.0], [9.0, 9.0]]]])
    assert restored_share(restored, clean + 4, target).item() == pytest.approx(0.75)
    with pytest.raises(TomokitError, match=r"got \(1, 3, 2, 2\) for \(1, 1, 2, 2\)"):
        restored_share(restored, clean, torch.zeros(1, 3, 2, 2))


def test_the_metric_is_the_mean_over_images_of_single_ones_and_batches():
    clean, metric = images(3), RestoredShare()
    distorted, restored = clean + 1, clean + torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1, 1, 1)
    assert math.isnan(metric.aggregate())
    metric(restored[:2], torch.cat([distorted, clean], 1)[:2])
    metric([restored[2]], [torch.cat([distorted[2], clean[2]])])
    assert metric.aggregate() == pytest.approx(0.5)
    metric.reset()
    assert math.isnan(metric.aggregate())


def test_the_measures_of_a_case_and_their_mean():
    clean = images(1, channels=1)[0]
    found = measure_restoration(clean + 0.5, clean + 1, clean)
    extent = float(clean.max() - clean.min())
    assert found["restored"] == pytest.approx(0.5) and found["error"] == pytest.approx(0.5)
    assert found["error_distorted"] == pytest.approx(1)
    assert found["psnr_db"] == pytest.approx(psnr((clean + 0.5)[0].numpy(), clean[0].numpy(), extent), rel=1e-5)
    untouched = measure_restoration(clean, clean, clean)
    assert untouched["restored"] is None and untouched["psnr_db"] is None and untouched["error"] == 0
    rows = [{"patient": "a", **found}, {"patient": "b", **untouched}]
    summary = summarise_restoration(rows)["summary"]
    assert summary["restored"]["mean"] == pytest.approx(0.5) and summary["restored"]["cases"] == 1
    assert summary["error"]["mean"] == pytest.approx(0.25)


def test_the_patient_s_right_is_on_the_left_and_the_front_up():
    image = np.zeros((4, 6, 3))
    image[3, 5, 1] = 1  # right, front
    assert np.argwhere(middle_slice(image)).tolist() == np.argwhere(middle_slice(image[..., 1])).tolist() == [[0, 0]]
    assert middle_slice(image).shape == (6, 4)


@pytest.mark.parametrize("size", [(20, 30, 10), (20, 30)])
def test_a_picture_has_three_panels_a_row(size, tmp_path):
    clean = np.random.default_rng(0).random(size)
    case = {"title": "case", "clean": clean, "distorted": clean * 0, "restored": clean}
    draw_restorations([case, case], tmp_path / "a.png")
    assert np.asarray(Image.open(tmp_path / "a.png").convert("L")).std() > 10
    with pytest.raises(TomokitError, match=r"nothing to draw in .*b\.png"):
        draw_restorations([], tmp_path / "b.png")


# ------------------------------------------------------------------------------------- images without labels


def test_images_without_a_label_join_the_training_cases(tmp_path):
    items = make_items(10)
    bare = [{"image": f"imagesTr/u{i}.nii.gz"} for i in range(3)]
    folder = write_set(tmp_path / "set", [*items, *bare], ["imagesTs/t0.nii.gz"])
    labelled = select_cases(folder, "splits.json", 0)
    cases = select_cases(folder, "splits.json", 0, labelled=False)
    names = {part: [entry["case"] for entry in entries] for part, entries in cases.items()}
    assert names["training"] == [*(entry["case"] for entry in labelled["training"]), "u0", "u1", "u2"]
    for part in ("validation", "test"):
        assert names[part] == [entry["case"] for entry in labelled[part]]
    assert all(set(entry) == {"case", "patient", "image"} for entries in cases.values() for entry in entries)
    again = select_cases(folder, "splits.json", 0, labelled=False, **names)
    assert again == cases


def test_a_patient_of_the_test_part_gives_no_unlabelled_image(tmp_path):
    items = [item | {"patient": f"p{number}"} for number, item in enumerate(make_items(6))]
    bare = [{"image": "imagesTr/u0.nii.gz", "patient": "p5"}, {"image": "imagesTr/u1.nii.gz", "patient": "p0"}]
    folder = write_set(tmp_path / "set", [*items, *bare])
    fold = {"training": ["c0", "c1", "c2"], "validation": ["c3"], "test": ["c4", "c5"]}
    write_json(folder / "splits.json", {"folds": [fold]})
    cases = select_cases(folder, "splits.json", 0, labelled=False)
    assert [entry["case"] for entry in cases["training"]] == ["c0", "c1", "c2", "u1"]


def test_a_set_without_any_label_is_drawn_from_all_its_images(tmp_path):
    folder = write_set(tmp_path / "set", [{"image": f"imagesTr/u{i}.nii.gz"} for i in range(10)])
    cases = select_cases(folder, "splits.json", 0, labelled=False)
    assert [len(cases[part]) for part in ("training", "validation", "test")] == [6, 2, 2]


# ------------------------------------------------------------------------------------------ its weights


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory):
    """Return a folder of volumes of which none has a label."""
    folder = tmp_path_factory.mktemp("data") / "set"
    phantoms.make_segmentation_set(folder, cases=8, test_cases=2, size=32, progress=False)
    content = read_description(folder)
    for part in ("training", "test"):
        content[part] = [{"image": item["image"]} for item in content[part]]
    del content["labels"]
    write_json(folder / "dataset.json", content)
    (folder / "splits.json").unlink()  # drawn for the labelled cases
    return folder


@pytest.fixture(scope="module")
def pretrained(unlabelled, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "pretrained"
    return train("pretraining", run, dataset_dir=str(unlabelled), patch_size=[16, 16, 16], **STAGES)


def test_a_pretraining_needs_no_label_and_tells_what_it_restored(pretrained):
    record = json.loads((pretrained / "validation.json").read_text())
    assert record["metric"] == "val_restored" and record["best"]["metric"] <= 1
    follow("pretraining", pretrained, "evaluate")
    measures = json.loads((pretrained / "metrics.json").read_text())
    assert measures["task"] == "pretraining" and measures["summary"]["error_distorted"]["mean"] > 0
    assert (pretrained / "overlay.png").is_file()
    follow("pretraining", pretrained, "inference")
    assert len(list((pretrained / "inference").glob("*.png"))) == 2


def test_a_pretraining_is_released_and_restores_as_the_run_did(pretrained, unlabelled, tmp_path, monkeypatch):
    follow("pretraining", pretrained, "evaluate")
    follow("pretraining", pretrained, "inference", output_dir=str(tmp_path / "own"))
    release = release_run("pretraining", pretrained, tmp_path / "weights.zip", exports=False)
    zipfile.ZipFile(release.path).extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    scans = str(unlabelled / "imagesTs")
    monai.bundle.run(config_file="weights/configs/inference.json", input=scans, output_dir="out")
    found, own = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("out", "own"))
    assert found == own != {}


def test_masked_autoencoding_learns_the_hidden_voxels(unlabelled, tmp_path):
    options = {"dataset_dir": str(unlabelled), "patch_size": [16, 16, 16], **STAGES}
    run = train("pretraining", tmp_path / "run", "modes/masked", **options)
    follow("pretraining", run, "evaluate")
    assert json.loads((run / "metrics.json").read_text())["summary"]["restored"]["mean"] <= 1


def test_all_but_the_head_fits_the_segmentation_s_network(pretrained, caplog):
    network = LeanUNet(3, 1, 4, **STAGES, heads=2)
    with caplog.at_level(logging.INFO):
        load_pretrained(network, pretrained)
    body = [name for name in network.state_dict() if not name.startswith("logits.")]
    assert f"pretrained: {len(body)} of {len(network.state_dict())} tensors from" in caplog.text
    assert "left out, of another shape: logits.1.weight (1, 4) for (4, 4)" in caplog.text
    best = weights(pretrained, "best")
    assert all(torch.equal(network.state_dict()[name], best[name]) for name in body)


def test_the_way_down_fits_the_classification_s_network(pretrained, caplog):
    network = LeanEncoder(3, 1, 2, **STAGES)
    with caplog.at_level(logging.INFO):
        load_pretrained(network, pretrained)
    body = [name for name in network.state_dict() if name.startswith("encoder.")]
    assert f"pretrained: {len(body)} of {len(body) + 2} tensors from" in caplog.text
    assert "left out, not in the file: fc.weight, fc.bias" in caplog.text and "not in the network: ups.0" in caplog.text
    best = weights(pretrained, "best")
    assert body and all(torch.equal(network.state_dict()[name], best[name]) for name in body)
    image = torch.rand(2, 1, 12, 12, 12)
    assert network(image).shape == (2, 2)


def test_the_encoder_gives_the_u_net_s_features():
    torch.manual_seed(0)
    unet, encoder = LeanUNet(2, 1, 3, **STAGES), LeanEncoder(2, 1, 2, **STAGES)
    encoder.encoder.load_state_dict(unet.encoder.state_dict())
    features = []
    unet.encoder[-1].register_forward_hook(lambda _, __, output: features.append(output))
    encoder.encoder[-1].register_forward_hook(lambda _, __, output: features.append(output))
    image = torch.rand(1, 1, 16, 16)
    unet(image), encoder(image)
    assert torch.equal(*features)
