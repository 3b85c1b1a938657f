"""Labels of whole volumes in bounded memory are those of the full logits, on any grid."""

import itertools
import re
import resource
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import torch
from grids import oblique_affine
from monai.data import MetaTensor, list_data_collate
from monai.inferers.utils import sliding_window_inference
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    Spacingd,
    SpatialPadd,
)

import tomokit.inference.fields as module
from tomokit.ensembles import Ensemble
from tomokit.errors import TomokitError
from tomokit.inference import SlabInferer
from tomokit.inference.boxes import find_body, widen
from tomokit.inference.heads import find_head, without_head
from tomokit.inference.windows import place_windows
from tomokit.networks import LeanUNet
from tomokit.reading import ScanReader
from tomokit.regions import region_values
from tomokit.spacing import SeparableSpacingd

SHAPES = [(40, 33, 57), (10, 40, 20), (33, 7, 9), (16, 16, 16), (64, 20, 1), (1, 1, 1)]
REGIONS = {"whole": [1, 2, 3], "core": [1, 3], "enhancing": [3]}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def small_unet():
    """Return a network whose 24 classes have a pointwise last layer on 8 features."""
    torch.manual_seed(0)
    return LeanUNet(3, 1, 24, filters=[8, 16], strides=[1, 2], kernel_size=[3, 3], heads=1, dropout=0.0).eval()


@pytest.fixture(scope="module")
def smooth_network():
    """Return a network without a pointwise last layer: three smooth functions of the image."""
    torch.manual_seed(1)
    return torch.nn.Conv3d(1, 3, 5, padding=2)


def full_logits(image, network, size, mode="gaussian", overlap=0.5):
    """Return logits (1, K, X, Y, Z) of the same windows and weights, summed in float64 over the whole volume."""
    short = [max(0, edge - length) for edge, length in zip(size, image.shape[2:], strict=True)]
    pads = [(lack // 2, lack - lack // 2) for lack in short]
    padded = torch.nn.functional.pad(image, list(itertools.chain.from_iterable(reversed(pads))))
    windows = place_windows(padded.shape[2:], size, overlap, mode)
    first, second, third = windows.weights
    weight = first[:, None, None] * second[:, None] * third
    total, weights = 0.0, torch.zeros(padded.shape[2:], dtype=torch.float64)
    for place in itertools.product(*windows.starts):
        part = tuple(slice(start, start + edge) for start, edge in zip(place, size, strict=True))
        logits = torch.zeros((1, 1, *padded.shape[2:]), dtype=torch.float64)
        made = network(padded[(..., *part)])
        logits = logits.repeat(1, made.shape[1], 1, 1, 1)
        logits[(..., *part)] = made.double() * weight
        total, weights[part] = total + logits, weights[part] + weight
    inside = tuple(slice(before, before + length) for (before, _), length in zip(pads, image.shape[2:], strict=True))
    return (total / weights)[(..., *inside)].float()


@pytest.mark.parametrize("mode", ["gaussian", "constant"])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_labels_are_those_of_the_whole_volume(shape, mode, small_unet):
    image = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(3))
    whole = full_logits(image, small_unet, (16, 16, 16), mode)
    logits = SlabInferer((16, 16, 16), mode=mode, reduce="logits")(image, small_unet)
    torch.testing.assert_close(logits, whole, atol=1e-5, rtol=1e-5)
    labels = SlabInferer((16, 16, 16), mode=mode)(image, small_unet)
    assert labels.dtype == torch.uint8
    assert labels.shape == (1, 1, *shape)
    assert (labels[:, 0] == whole.argmax(1)).float().mean() >= 0.9999


def test_windows_that_tile_the_volume_agree_with_monai(small_unet):
    image = torch.randn(2, 1, 32, 24, 40, generator=torch.Generator().manual_seed(4))
    weights = place_windows((16, 16, 16), (16, 16, 16), 0.5, "gaussian").weights
    weight = weights[0][:, None, None] * weights[1][:, None] * weights[2]
    whole = sliding_window_inference(image, (16, 16, 16), 2, small_unet, overlap=0.5, roi_weight_map=weight)
    logits = SlabInferer((16, 16, 16), reduce="logits", sw_batch_size=3)(image, small_unet)
    torch.testing.assert_close(logits, whole, atol=1e-5, rtol=1e-5)
    probabilities = SlabInferer((16, 16, 16), reduce="probabilities")(image, small_unet)
    torch.testing.assert_close(probabilities, whole.softmax(1), atol=1e-5, rtol=1e-5)
    labels = SlabInferer((16, 16, 16))(image, small_unet)
    assert (labels[:, 0] == whole.argmax(1)).float().mean() >= 0.9999


def test_mirrored_windows_are_the_mean_over_the_mirrored_volume(small_unet):
    image = torch.randn(1, 1, 20, 24, 28, generator=torch.Generator().manual_seed(5))
    plain = SlabInferer((16, 16, 16), reduce="logits")
    mean = sum(plain(image.flip(flip), small_unet).flip(flip) for flip in [(), (2,), (4,), (2, 4)]) / 4
    mirrored = SlabInferer((16, 16, 16), reduce="logits", mirror_axes=[0, 2])(image, small_unet)
    # evenly spaced windows need not lie symmetrically to a voxel: 4 from 20 does
    torch.testing.assert_close(mirrored, mean, atol=1e-5, rtol=1e-5)


def test_an_image_goes_through_a_network_of_two_dimensions():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 9, 1))
    image = torch.randn(2, 1, 40, 29)
    logits = SlabInferer((16, 16), reduce="logits", mode="constant")(image, network)
    whole = sliding_window_inference(image, (16, 16), 1, network, overlap=0.5)
    assert logits.shape == whole.shape == (2, 9, 40, 29)
    labels = SlabInferer((16, 16), mode="constant")(image, network)
    assert torch.equal(labels[:, 0].long(), logits.argmax(1))


# ------------------------------------------------------------------------------------------------ the source's grid


def load(source, spacing, size=(1, 1, 1)):
    """Return the preprocessing and the batch of one file."""
    preprocessing = Compose(
        [
            LoadImaged("image", reader="NibabelReader"),
            EnsureChannelFirstd("image"),
            Orientationd("image", "RAS", labels=None),
            Spacingd("image", spacing, mode="bilinear"),
            SpatialPadd("image", size),
        ]
    )
    item = preprocessing({"image": str(source)})
    return preprocessing, item, list_data_collate([item])["image"]


def inverted(logits, preprocessing, item):
    """Return logits (K, X, Y, Z) on the source's grid by MONAI's Invertd."""
    pred = item["image"].clone()
    pred = pred.__class__(logits, meta=item["image"].meta, applied_operations=item["image"].applied_operations)
    back = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False)
    return torch.as_tensor(back({"image": item["image"], "pred": pred})["pred"])


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR", "SRA"])
@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.5, 1.5, 3.0), (1.0, 4.0, 2.5)])
def test_labels_on_the_source_are_those_of_monais_inverted_logits(codes, spacing, smooth_network, write_volume):
    rng = np.random.default_rng(2)
    shape = (37, 30, 22)
    source = write_volume("scan.nii.gz", rng.normal(size=shape).astype(np.float32), oblique_affine(codes, shape=shape))
    preprocessing, item, image = load(source, spacing, (24, 1, 1))
    logits = SlabInferer((16, 16, 16), reduce="logits")(image, smooth_network)
    truth = inverted(logits[0], preprocessing, item)
    labels = SlabInferer((16, 16, 16), grid="source")(image, smooth_network)
    assert labels.shape == (1, 1, *shape)
    assert np.allclose(labels.affine[0], nibabel.load(source).affine)
    assert (labels[0, 0] == truth.argmax(0)).float().mean() >= 0.9999


CROPS = [CropForegroundd("image", source_key="image", margin=0), CenterSpatialCropd("image", (9, 30, 17))]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
@pytest.mark.parametrize("crop", CROPS, ids=["foreground", "centre"])
def test_what_preprocessing_cropped_away_is_background(codes, crop, write_volume):
    scan = np.zeros((37, 30, 22))
    scan[12:25, 9:20, 6:18] = 1
    source = write_volume("scan.nii.gz", scan, oblique_affine(codes, shape=scan.shape))
    item_of = Compose([LoadImaged("image", ensure_channel_first=True), Orientationd("image", "RAS", labels=None), crop])
    item = item_of({"image": str(source)})
    image = list_data_collate([item])["image"]
    truth = inverted(SlabInferer((8, 8, 8), reduce="logits")(image, Threshold())[0], item_of, item)
    assert 0 < truth.argmax(0).sum() <= scan.sum()
    maps = {"organ": 1, "sure": "confidence"}
    inferer = SlabInferer((8, 8, 8), grid="source", maps=maps)
    assert torch.equal(inferer(image, Threshold())[0, 0].as_tensor(), truth.argmax(0).byte())
    outside = torch.as_tensor(nibabel.load(source).get_fdata() == 0) & (truth == 0).all(0)
    assert not inferer.found_maps["organ"][0].as_tensor()[outside].any()
    assert (inferer.found_maps["sure"][0].as_tensor()[outside] == 255).all()


def test_regions_paint_their_labels_as_on_the_whole_volume(smooth_network, write_volume):
    rng = np.random.default_rng(2)
    source = write_volume("scan.nii.gz", rng.normal(size=(37, 30, 22)), oblique_affine("LPS", shape=(37, 30, 22)))
    preprocessing, item, image = load(source, (2.0, 2.0, 2.0))
    logits = SlabInferer((16, 16, 16), reduce="logits", regions=REGIONS)(image, smooth_network)
    truth = torch.zeros(37, 30, 22)
    for region, value in zip(inverted(logits[0], preprocessing, item), region_values(REGIONS), strict=True):
        truth = truth.masked_fill(region >= 0, value)
    labels = SlabInferer((16, 16, 16), grid="source", regions=REGIONS)(image, smooth_network)
    assert set(labels.unique().tolist()) == {0, 1, 2, 3}
    assert (labels[0, 0] == truth).float().mean() >= 0.9999
    probabilities = SlabInferer((16, 16, 16), reduce="probabilities", regions=REGIONS)(image, smooth_network)
    torch.testing.assert_close(probabilities, logits.sigmoid())


def test_nearest_takes_the_label_of_the_nearest_voxel(smooth_network, write_volume):
    rng = np.random.default_rng(2)
    source = write_volume("scan.nii.gz", rng.normal(size=(37, 30, 22)), np.diag([1.0, 1.0, 1.0, 1.0]))
    _, _, image = load(source, (2.0, 2.0, 2.0))
    on_network = SlabInferer((16, 16, 16))(image, smooth_network)[0, 0]
    labels = SlabInferer((16, 16, 16), grid="source", interpolation="nearest")(image, smooth_network)[0, 0]
    half = [np.floor(np.arange(length) / 2 + 0.5).astype(int) for length in labels.shape]
    places = [np.minimum(place, length - 1) for place, length in zip(half, on_network.shape, strict=True)]
    assert torch.equal(labels.as_tensor(), on_network.as_tensor()[np.ix_(*places)])


@pytest.mark.parametrize("regions", [None, REGIONS])
def test_maps_are_probabilities_and_the_entropy_of_the_interpolated_logits(regions, smooth_network, write_volume):
    rng = np.random.default_rng(2)
    source = write_volume("scan.nii.gz", rng.normal(size=(37, 30, 22)), oblique_affine("LPS", shape=(37, 30, 22)))
    preprocessing, item, image = load(source, (2.0, 2.0, 2.0))
    logits = 20 * SlabInferer((16, 16, 16), reduce="logits", regions=regions)(image, smooth_network)
    whole = inverted(logits[0], preprocessing, item)
    scaled = torch.nn.Sequential(smooth_network, Scale(20))
    maps = {"two": 2, "unsure": "entropy", "sure": "confidence"}
    inferer = SlabInferer((16, 16, 16), grid="source", regions=regions, maps=maps)
    labels = inferer(image, scaled)
    assert (labels == SlabInferer((16, 16, 16), grid="source", regions=regions)(image, scaled)).all()
    chances = whole.sigmoid() if regions else whole.softmax(0)
    entropy = -(chances * chances.clamp(min=1e-30).log()).sum(0) / np.log(3)
    if regions:
        each = chances * chances.log2() + (1 - chances) * (1 - chances).log2()
        entropy = (-each).nan_to_num(0).amax(0)
    sure = torch.maximum(chances, 1 - chances).amin(0) if regions else chances.amax(0)
    for name, truth in (("two", chances[2]), ("unsure", entropy), ("sure", sure)):
        found = inferer.found_maps[name]
        assert found.shape == (1, 37, 30, 22) and found.dtype == torch.uint8
        assert (found.as_tensor()[0] / 255 - truth).abs().max() < 1 / 255 + 0.51 / 255


class Scale(torch.nn.Module):
    """Multiplies logits."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits):
        return self.factor * logits


@pytest.mark.parametrize("sigmoid", [False, True])
def test_the_variance_is_that_of_the_members(sigmoid, smooth_network):
    image = torch.randn(1, 1, 24, 20, 33, generator=torch.Generator().manual_seed(3))
    ensemble = Ensemble(torch.nn.Sequential(smooth_network, Scale(8)), 3, sigmoid)
    for number, member in enumerate(ensemble.members):
        member[1].factor = 4.0 * number - 3
    members = torch.stack([full_logits(image[..., :16, :16, :16], member, (16, 16, 16)) for member in ensemble.members])
    chances = members.sigmoid() if sigmoid else members.softmax(2)
    one = ensemble.with_variance(image[..., :16, :16, :16])
    torch.testing.assert_close(one[:, 3], 4 * chances.var(0, correction=0).amax(1), atol=1e-4, rtol=0)
    torch.testing.assert_close(one[:, :3], ensemble(image[..., :16, :16, :16]))
    truth = full_logits(image, ensemble.with_variance, (16, 16, 16))[0, 3]
    regions = REGIONS if sigmoid else None
    inferer = SlabInferer((16, 16, 16), regions=regions, maps={"spread": "variance", "one": 1})
    labels = inferer(image, ensemble)
    assert torch.equal(labels, SlabInferer((16, 16, 16), regions=regions)(image, ensemble))
    assert 0.1 < truth.max() <= 1
    assert (inferer.found_maps["spread"][0] / 255 - truth).abs().max() < 0.51 / 255


def test_one_network_has_no_variance(smooth_network):
    with pytest.raises(TomokitError, match="variance needs an ensemble of runs, got Conv3d; join runs"):
        SlabInferer((16, 16, 16), maps={"spread": "variance"})(torch.zeros(1, 1, 16, 16, 16), smooth_network)


@pytest.mark.parametrize("of", [3, -1, "spread"])
def test_a_map_of_nothing_is_refused(of, smooth_network):
    with pytest.raises(TomokitError, match=f"map wanted is of {of!r}, not of a channel from 0 to 2, 'confidence'"):
        SlabInferer((16, 16, 16), maps={"wanted": of})(torch.zeros(1, 1, 16, 16, 16), smooth_network)


def test_maps_are_of_one_volume_at_a_time(smooth_network):
    with pytest.raises(TomokitError, match="one volume at a time, got 2"):
        SlabInferer((16, 16, 16), maps={"one": 1})(torch.zeros(2, 1, 16, 16, 16), smooth_network)


def test_strips_of_a_slab_change_nothing(small_unet, monkeypatch, write_volume):
    rng = np.random.default_rng(2)
    source = write_volume("scan.nii.gz", rng.normal(size=(60, 70, 90)), np.diag([1.0, 1.0, 1.0, 1.0]))
    _, _, image = load(source, (1.3, 1.1, 1.2))
    whole = SlabInferer((16, 16, 16), grid="source")(image, small_unet)
    needed = []
    monkeypatch.setattr(module, "free_memory", lambda wanted: 11e6)
    monkeypatch.setattr(module, "strip_bytes", lambda *args: needed.append(args[2]) or args[2] * 2e5)
    strips = SlabInferer((16, 16, 16), grid="source")(image, small_unet)
    assert needed[-1] < 0.6 * needed[0]  # several strips
    assert (strips == whole).float().mean() >= 0.9999


def test_a_turned_grid_is_refused(smooth_network, write_volume):
    source = write_volume("scan.nii.gz", np.zeros((20, 20, 20)), np.eye(4))
    _, _, image = load(source, (1.0, 1.0, 1.0))
    image.affine = image.affine @ torch.as_tensor(oblique_affine("RAS", shape=(20, 20, 20)))[None]
    with pytest.raises(TomokitError, match="turned against the source's"):
        SlabInferer((16, 16, 16), grid="source")(image, smooth_network)


# ---------------------------------------------------------------------------------------------------- the body's box


def phantom_scan(shape=(80, 90, 100)):
    """Return a scan (X, Y, Z) of air at -1 with a body of 0 and two bright organs in it, one at the body's surface."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    body = (((grid - (35, 45, 50)) / (22, 26, 40)) ** 2).sum(-1) < 1
    image = np.where(body, 0.0, -1.0)
    image[(((grid - (35, 45, 50)) / (8, 8, 8)) ** 2).sum(-1) < 1] = 1.0
    return image.astype(np.float32)


class Threshold(torch.nn.Module):
    """Calls bright voxels organ, by a smooth function of the image."""

    def __init__(self, level: float = 0.5) -> None:
        super().__init__()
        self.level = level
        self.calls = 0

    def forward(self, image):
        self.calls += len(image)
        score = torch.nn.functional.avg_pool3d(image, 3, 1, 1, count_include_pad=False) - self.level
        return torch.cat([-score, score], 1)


def test_the_bodys_box_saves_windows_and_changes_no_structure(write_volume):
    source = write_volume("scan.nii.gz", phantom_scan(), np.diag([2.0, 2.0, 2.0, 1.0]))
    _, _, image = load(source, (2.0, 2.0, 2.0))
    cropped, whole = Threshold(), Threshold()
    labels = SlabInferer((16, 16, 16), grid="source", body_crop=True)(image, cropped)
    truth = SlabInferer((16, 16, 16), grid="source")(image, whole)
    assert cropped.calls < 0.8 * whole.calls
    assert torch.equal(labels, truth)


class Dark(Threshold):
    """Calls voxels of -0.999 organ: a little brighter than air."""

    def forward(self, image):
        self.calls += len(image)
        score = 1e-3 - 2 * (image + 0.999).abs()
        return torch.cat([-score, score], 1)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
def test_the_box_grows_where_a_structure_touches_its_face(codes, write_volume, caplog):
    scan = phantom_scan()
    scan[45:78, 43:48, 48:53] = -0.999  # a dark structure out of the body's box, in the air
    oriented = nibabel.Nifti1Image(scan, np.diag([2.0, 2.0, 2.0, 1.0]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(oriented.affine), nibabel.orientations.axcodes2ornt(codes)
    )
    oriented = oriented.as_reoriented(turn)
    source = write_volume("scan.nii.gz", oriented.get_fdata(), oriented.affine)
    _, _, image = load(source, (2.0, 2.0, 2.0))
    with caplog.at_level("INFO"):
        labels = SlabInferer((16, 16, 16), grid="source", body_crop=True)(image, Dark())
    truth = SlabInferer((16, 16, 16), grid="source")(image, Dark())
    assert 0 < caplog.text.count("reaches the body box's face") <= 2  # each time twice as far
    assert truth.sum() >= 33 * 5 * 5
    assert torch.equal(labels, truth)


@pytest.mark.parametrize("first", [15, 16, 17])
def test_a_structure_between_two_thick_slices_reaches_the_boxs_face(first, write_volume):
    scan = np.full((60, 60, 40), -1.0)
    scan[15:45, 15:45, :14] = 0  # the body, in slices 8 mm apart; its box ends between slices 16 and 17
    scan[28:32, 28:32, first:38] = -0.999
    source = write_volume("scan.nii.gz", scan, np.diag([2.0, 2.0, 8.0, 1.0]))
    _, _, image = load(source, (2.0, 2.0, 2.0))
    assert find_body(image[0].as_tensor(), (2.0, 2.0, 2.0))[2] == (0, 66)
    labels = SlabInferer((16, 16, 16), grid="source", body_crop=True)(image, Dark())
    assert torch.equal(labels, SlabInferer((16, 16, 16), grid="source")(image, Dark()))
    assert labels.sum() == 16 * (38 - first)


def test_the_body_is_found_in_every_channel_with_a_margin_around_it():
    image = torch.zeros(2, 90, 80, 70)
    image[0, 30:50, 20:40, 30:40] = 100
    image[1, 30:50, 20:40, 40:50] = 15  # dark beside the table that is there too
    image[1, 60:62, 20:60, 10:60] = 100
    assert find_body(image[:1], (4.0, 5.0, 10.0)) == ((24, 55), (15, 44), (27, 42))
    assert find_body(image, (4.0, 5.0, 10.0)) == ((24, 67), (15, 64), (7, 62))


def test_where_the_air_is_not_dark_the_whole_volume_is_looked_at():
    network = Threshold()
    image = torch.full((1, 1, 32, 32, 32), 3.0)
    SlabInferer((16, 16, 16), body_crop=True)(image, network)
    assert network.calls == 27 + 1  # and the look at the first window


def test_windows_larger_than_the_bodys_box_see_what_is_around_it():
    image = torch.full((1, 1, 60, 40, 40), -1.0)
    image[..., 20:30, 15:25, 15:25] = 1.0  # with 20 mm around it a box of 32×32×32 or less
    image = MetaTensor(image, affine=torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])).double()[None])

    class Padding(torch.nn.Module):
        def forward(self, image):
            score = torch.nn.functional.max_pool3d((image == 0).float(), 41, 1, 20) - 0.5
            return torch.cat([-score, score], 1)

    assert not SlabInferer((48, 36, 40), body_crop=True)(image, Padding()).any()


@pytest.mark.parametrize(
    ("box", "wide"),
    [
        (((5, 9), (0, 3)), ((2, 12), (0, 8))),
        (((0, 2), (17, 20)), ((0, 10), (12, 20))),
        (((3, 18), (4, 6)), ((3, 18), (1, 9))),
    ],
)
def test_a_box_widens_to_the_window_within_the_volume(box, wide):
    assert widen(box, (10, 8), (20, 20)) == wide
    assert widen(box, (30, 30), (20, 20)) == ((0, 20), (0, 20))


def test_background_is_sure_outside_the_bodys_box(write_volume):
    source = write_volume("scan.nii.gz", phantom_scan(), np.diag([2.0, 2.0, 2.0, 1.0]))
    _, _, image = load(source, (2.0, 2.0, 2.0))
    maps = {"air": 0, "organ": 1, "sure": "confidence"}
    inferer = SlabInferer((16, 16, 16), grid="source", body_crop=True, maps=maps)
    inferer(image, torch.nn.Sequential(Threshold(), Scale(100)))
    air, organ, sure = (inferer.found_maps[name][0].as_tensor().int() for name in maps)
    assert (air + organ - 255).abs().max() <= 1
    assert air[0, 0, 0] == sure[0, 0, 0] == 255


# ------------------------------------------------------------------------------------------------------- the last layer


def test_the_last_layer_is_found_left_out_and_put_back(small_unet):
    image = torch.randn(1, 1, 16, 16, 16)
    output, name = find_head(small_unet, image)
    assert name
    assert not any(module._forward_hooks for module in small_unet.modules())
    with without_head(small_unet, name) as head:
        features = small_unet(image)
    assert features.shape[1] == 8
    torch.testing.assert_close(head(features), output)
    torch.testing.assert_close(small_unet(image), output)


def test_a_layer_that_is_not_the_last_is_no_head():
    inside = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.Conv3d(2, 30, 3, padding=1))
    in_place = torch.nn.Sequential(
        torch.nn.Conv3d(1, 2, 3, padding=1), torch.nn.Conv3d(2, 30, 1), torch.nn.ReLU(inplace=True)
    )
    for network in (inside, in_place):
        assert find_head(network, torch.randn(1, 1, 8, 8, 8))[1] == ""


# ----------------------------------------------------------------------------------------------------- surroundings


def test_bfloat16_is_the_networks_precision_alone(small_unet):
    torch.manual_seed(0)
    image = torch.rand(1, 1, 20, 33, 24)
    whole, lower = (
        SlabInferer((16, 16, 16), reduce="logits", dtype=dtype)(image, small_unet)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert lower.dtype == torch.float32
    assert 0 < (lower - whole).abs().max() < 0.05 * whole.abs().max()


def test_bfloat16_does_not_hold_the_weights_twice():
    """Autocast keeps what it casted until it ends: of a large network, more than the sums of the windows."""
    kept = []
    network = torch.nn.Conv3d(1, 2, 3, padding=1)
    network.register_forward_hook(lambda *_: kept.append(torch.is_autocast_cache_enabled()))
    SlabInferer((16, 16, 16), dtype=torch.bfloat16)(torch.rand(1, 1, 20, 33, 24), network)
    assert kept and not any(kept)


class Lifted(torch.nn.Module):
    """Makes part of what is below 0 a region: hills become plateaus."""

    def forward(self, logits):
        return logits + 8


class Bumps(torch.nn.Module):
    """Gives each of its classes a smooth hill of its own, wide beside the blocks in which classes are ruled out."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.centres = torch.linspace(-1, 1, classes)

    def forward(self, image):
        return -40 * (image - self.centres[:, None, None, None]) ** 2


@pytest.mark.parametrize("regions", [None, {"whole": [1, 2, 3], "core": [1, 3], "enhancing": [3]}])
def test_ruling_classes_out_block_by_block_changes_no_label(regions, write_volume):
    shape = (44, 40, 56)
    ramp = np.linspace(-1, 1, shape[2])
    scan = (
        ramp * np.cos(np.linspace(0, 2, shape[0]))[:, None, None] + 0.1 * np.sin(np.linspace(0, 6, shape[1]))[:, None]
    )
    source = write_volume("scan.nii.gz", scan.astype(np.float32), oblique_affine("LPS", shape=shape))
    preprocessing, item, image = load(source, (1.5, 1.5, 1.5))
    classes = 3 if regions else 24
    network = torch.nn.Sequential(Bumps(classes), Lifted()) if regions else Bumps(classes)
    given = {"regions": regions}
    logits = inverted(SlabInferer((32, 32, 32), reduce="logits", **given)(image, network)[0], preprocessing, item)
    labels = SlabInferer((32, 32, 32), grid="source", **given)(image, network)[0, 0]
    truth = logits.argmax(0)
    if regions:
        truth = torch.zeros(shape)
        for region, value in zip(logits, region_values(regions), strict=True):
            truth = truth.masked_fill(region >= 0, value)
    assert len(labels.unique()) == (4 if regions else 24)
    assert (labels == truth).float().mean() >= 0.9999


def test_more_classes_than_a_byte_holds_keep_their_labels():
    image = torch.linspace(-1, 1, 300).reshape(1, 1, 10, 10, 3)
    labels = SlabInferer((8, 8, 8))(image, Bumps(300))
    assert labels.dtype == torch.int32 and labels.flatten().tolist() == list(range(300))


def test_each_volume_of_a_batch_goes_to_its_own_grid(smooth_network, write_volume):
    rng = np.random.default_rng(4)
    scan = rng.normal(size=(30, 28, 22))
    items = []
    for number, codes in enumerate(("RAS", "LPS")):
        source = write_volume(f"scan_{number}.nii.gz", scan, oblique_affine(codes, shape=scan.shape))
        items.append(load(source, (2.0, 2.0, 2.0))[1])
    together = SlabInferer((16, 16, 16), grid="source")(list_data_collate(items)["image"], smooth_network)
    for number, item in enumerate(items):
        alone = SlabInferer((16, 16, 16), grid="source")(list_data_collate([item])["image"], smooth_network)
        assert torch.equal(together[number], alone[0])
        assert torch.allclose(together.affine[number], alone.affine[0])


def test_the_callers_autocast_does_not_reach_the_way_back(small_unet):
    image = torch.randn(1, 1, 24, 20, 33, generator=torch.Generator().manual_seed(3))
    truth = SlabInferer((16, 16, 16), reduce="logits")(image, small_unet)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(SlabInferer((16, 16, 16), reduce="logits")(image, small_unet), truth)


def test_an_image_with_a_place_goes_to_its_own_grid(write_volume):
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 3, 3, padding=1)
    source = write_volume("slice.nii.gz", np.random.default_rng(0).normal(size=(40, 30)), np.diag([1.0, 1.0, 1.0, 1.0]))
    item = LoadImaged("image", reader=ScanReader(), ensure_channel_first=True)({"image": str(source)})
    item = SeparableSpacingd("image", (1.6, 1.6))(item)
    image = list_data_collate([item])["image"]
    assert image.shape == (1, 1, 25, 19)
    labels = SlabInferer((16, 16), grid="source", body_crop=True)(image, network)
    assert labels.shape == (1, 1, 40, 30)
    assert len(labels.unique()) == 3


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_labels_come_back_on_the_gpu(small_unet, write_volume):
    source = write_volume("scan.nii.gz", phantom_scan(), np.diag([2.0, 2.0, 2.0, 1.0]))
    _, _, image = load(source, (2.5, 2.5, 2.5))
    options = {"grid": "source", "body_crop": True, "maps": {"unsure": "entropy"}}
    truth = SlabInferer((16, 16, 16), **options)(image, small_unet)
    labels = SlabInferer((16, 16, 16), **options)(image.cuda(), small_unet.cuda())
    small_unet.cpu()
    assert labels.is_cuda
    assert (labels.cpu() == truth).float().mean() >= 0.9999


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("regions", [None, REGIONS])
def test_a_voxel_that_is_no_number_is_told_with_the_files_name(value, regions, smooth_network, write_volume):
    scan = np.zeros((20, 20, 20), np.float32)
    scan[10, 10, 10] = value
    _, _, image = load(write_volume("broken.nii.gz", scan, np.eye(4)), (1.0, 1.0, 1.0))
    with pytest.raises(TomokitError, match=r"broken.nii.gz: the network's output is not finite"):
        SlabInferer((16, 16, 16), grid="source", regions=regions)(image, smooth_network)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"reduce": "argmax"}, "reduce must be one of logits, probabilities, labels, got 'argmax'"),
        ({"grid": "world"}, "grid must be one of network, source, got 'world'"),
        ({"interpolation": "cubic"}, "interpolation must be one of linear, nearest, got 'cubic'"),
        ({"reduce": "logits", "grid": "source"}, "`reduce: logits` needs `grid: network`"),
        ({"reduce": "logits", "maps": {"liver": 1}}, r"maps \(liver\) come beside labels.* got 'logits'"),
        ({"mirror_axes": [-1]}, r"axes to mirror must be of 0 \(x\).*, each once, got \[-1\]"),
        ({"mirror_axes": [0, 0]}, r"each once, got \[0, 0\]"),
        ({"backend": "onnx", "maps": {"spread": "variance"}}, "backend onnx gives no variance"),
        ({"roi_size": (16, 16, -1)}, r"roi_size must be .* each at least 1, got \(16, 16, -1\)"),
        ({"roi_size": 16}, "roi_size must be .* got 16"),
        ({"sw_batch_size": 0}, "sw_batch_size must be at least 1, got 0"),
        ({"roi_size": (16, 16), "mirror_axes": [2]}, r"\[2\] are not all of a window of 2 axes"),
        ({"dtype": "bfloat16"}, "dtype must be one of torch.float32, .*, got 'bfloat16'"),
    ],
)
def test_an_option_that_is_none_is_refused(options, told):
    with pytest.raises(TomokitError, match=told):
        SlabInferer(**{"roi_size": (16, 16, 16), **options})


def test_a_window_of_other_axes_than_the_images_is_refused(smooth_network):
    with pytest.raises(TomokitError, match=r"`roi_size` \(16, 16, 16\) is of 3 axes, the images .* are of 2"):
        SlabInferer((16, 16, 16))(torch.zeros(1, 1, 20, 20), smooth_network)


@pytest.mark.parametrize(("overlap", "mode", "told"), [(1.0, "gaussian", "got 1.0"), (0.5, "hann", "got 'hann'")])
def test_windows_that_cannot_be_are_refused(overlap, mode, told):
    with pytest.raises(TomokitError, match=told):
        place_windows((20, 20, 20), (16, 16, 16), overlap, mode)


def test_a_plain_tensor_has_no_source(smooth_network):
    with pytest.raises(TomokitError, match="needs images as LoadImaged gives them"):
        SlabInferer((16, 16, 16), grid="source")(torch.zeros(1, 1, 16, 16, 16), smooth_network)


def test_a_network_that_gives_no_logits_of_its_window_is_refused():
    with pytest.raises(TomokitError, match=r"must give logits on its window's grid.*\(1, 1, 8, 8, 8\)"):
        SlabInferer((16, 16, 16))(torch.zeros(1, 1, 16, 16, 16), torch.nn.AvgPool3d(2))


def test_a_volume_too_large_for_the_memory_is_refused_in_one_line(smooth_network, monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda wanted: 1000)
    with pytest.raises(TomokitError, match=r"free memory \(1e-06 GB\) does not suffice for windows of 16×16×16"):
        SlabInferer((16, 16, 16))(torch.zeros(1, 1, 40, 40, 40), smooth_network)


def test_windows_and_memory_are_told_before_a_long_volume_starts(write_volume, caplog):
    array = np.random.default_rng(0).normal(size=(40, 36, 32)).astype(np.float32)
    _, _, image = load(write_volume("scan.nii.gz", array), (1.0, 1.0, 1.0))
    network = Dark()
    with caplog.at_level("INFO"):
        SlabInferer((8, 8, 8), grid="source", maps={"dark": 1}, sw_batch_size=2)(image, network)
    found = re.search(r"scan.nii.gz: (\d+) windows of 8×8×8, 100% of the volume; about (\S+) GB beside.*", caplog.text)
    assert int(found[1]) == 9 * 8 * 7 == network.calls - 1  # and one to look at the network
    parts = re.search(r": (\S+) of windows' sums, (\S+) in the network, (\S+) of labels and maps", found[0])
    assert float(parts[3]) == pytest.approx(
        (1 + 1 + 4) * array.size / 1e9, rel=0.05
    )  # the map once more while it is written
    assert float(found[2]) == pytest.approx(sum(map(float, parts.groups())), rel=0.05)
    caplog.clear()
    with caplog.at_level("INFO"):
        SlabInferer((16, 16, 16), grid="source")(image, Dark())  # 4 × 4 × 3 windows take no time
    assert "windows of" not in caplog.text


LIMITED = """
import resource, torch
from tomokit.errors import TomokitError
from tomokit.inference import SlabInferer
network = torch.nn.Sequential(torch.nn.Conv3d(1, 16, 3, padding=1), torch.nn.Conv3d(16, 60, 1))
image = torch.randn(1, 1, 64, 160, 160)
import psutil
used = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (used + {spare}, -1))
try:
    labels = SlabInferer((32, 32, 32))(image, network)
    print("done", labels.shape)
except TomokitError as error:
    print("told", error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS"), reason="no such limit here")
@pytest.mark.parametrize(("spare", "told"), [(20_000_000, "told the free memory"), (250_000_000, "done")])
def test_under_a_memory_limit_the_slab_is_smaller_or_one_line_says_so(spare, told):
    command = [sys.executable, "-c", LIMITED.format(spare=spare)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.startswith(told), done.stdout + done.stderr[-2000:]
