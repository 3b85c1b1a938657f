import nibabel
import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from tomokit.errors import TomokitError
from tomokit.metrics import score_segmentation
from tomokit.pictures import (
    COLOURS,
    _middle,
    draw_cases,
    draw_counts,
    draw_maps,
    overlay_slice,
    pick_cases,
    turn_to_ras,
)

LABELS = {"0": "background", "1": "liver", "2": "spleen"}
SPACING = (1.0, 2.0, 4.0)


def rows_of(dice):
    return [{"case": case, "class": "liver", "dice": value} for case, value in dice.items()]


def make_case(name="case_001", codes="RAS"):
    """Return a case with a liver at the right, front and top of an anisotropic volume, in an orientation."""
    truth = np.zeros((20, 16, 12), dtype=np.uint8)
    truth[12:18, 10:15, 8:11] = 1
    truth[2:5, 2:5, 2:5] = 2
    image = np.arange(truth.size, dtype=np.float32).reshape(truth.shape)
    affine = np.diag([*SPACING, 1.0])
    turn = nibabel.orientations.axcodes2ornt(codes)
    arrays = {"image": image, "truth": truth, "prediction": np.roll(truth, 1, axis=0)}
    case = {key: nibabel.orientations.apply_orientation(array, turn) for key, array in arrays.items()}
    affine = affine @ nibabel.orientations.inv_ornt_aff(turn, truth.shape)
    return {**case, "affine": affine, "case": name, "dice": 0.8}


def test_worst_median_and_best():
    dice = {"a": 0.5, "b": 0.1, "c": 0.9, "d": 0.6, "e": 0.2}
    assert pick_cases(rows_of(dice)) == ["b", "a", "c"]
    assert pick_cases(rows_of(dict(reversed(dice.items())))) == ["b", "a", "c"]
    assert pick_cases(rows_of({"a": 0.5, "b": 0.1})) == ["b", "a"]
    assert pick_cases(rows_of({"a": 0.5, "b": None})) == ["a"]
    assert pick_cases([]) == []


def test_a_slice_shows_the_patients_right_on_the_left_and_the_front_at_the_top():
    image = np.zeros((8, 6))
    image[7, 5] = 1  # right and front
    picture = overlay_slice(image, np.zeros((8, 6), dtype=int))
    assert (picture.shape, picture.dtype) == ((6, 8, 3), np.uint8)
    assert picture[0, 0].tolist() == [255] * 3
    assert picture.sum() == 255 * 3


def test_prediction_is_blended_and_truth_outlined():
    prediction, truth = np.zeros((2, 9, 9), dtype=int)
    prediction[0, 0], truth[2:7, 2:7] = 2, 1
    picture = overlay_slice(np.zeros((9, 9)), prediction, truth)[::-1, ::-1].transpose(1, 0, 2) / 255
    assert picture[0, 0] == pytest.approx(0.45 * np.array(to_rgb(COLOURS[1])), abs=0.01)
    assert picture[2, 4] == pytest.approx(to_rgb(COLOURS[0]), abs=0.01)
    assert picture[4, 4].tolist() == [0, 0, 0]
    assert (picture.sum(axis=2) > 0).sum() == 1 + 16


def test_a_slice_is_the_same_under_another_intensity_scale():
    image, label_map = np.random.default_rng(0).random((12, 10)), np.eye(12, 10, dtype=int)
    assert np.array_equal(overlay_slice(image, label_map), overlay_slice(image * 300 - 40, label_map))


def test_a_constant_slice_is_black():
    assert overlay_slice(np.full((4, 4), 7.0), np.zeros((4, 4), dtype=int)).max() == 0


def test_slices_of_other_shapes():
    with pytest.raises(TomokitError, match=r"got \[\(4, 4\), \(4, 5\)\]"):
        overlay_slice(np.zeros((4, 4)), np.zeros((4, 5)))
    with pytest.raises(TomokitError, match=r"2D arrays of one shape \(X, Y\), got \[\(4, 4, 4\)"):
        overlay_slice(np.zeros((4, 4, 4)), np.zeros((4, 4, 4)))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAL", "IRP"])
def test_any_orientation_is_turned_to_the_same_volume(codes):
    volume, expected = turn_to_ras(make_case(codes=codes)), make_case()
    assert volume.spacing == SPACING
    for key in ("image", "truth", "prediction"):
        assert np.array_equal(getattr(volume, key), expected[key])


def test_views_pass_through_the_largest_structure():
    label_map = np.zeros((20, 20, 20), dtype=int)
    label_map[1, 1, 1] = 2
    label_map[10:15, 2:7, 4:9] = 1
    assert _middle(label_map) == (12, 4, 6)
    assert _middle(np.zeros((4, 6, 8))) == (2, 3, 4)
    ring = np.ones((5, 5, 1))
    ring[2, 2] = 0
    assert ring[_middle(ring)]  # a voxel of the structure, though its centre is not


def test_the_sheet_shows_both_colours_and_does_not_depend_on_orientation(tmp_path):
    draw_cases([make_case("a"), make_case("b")], LABELS, tmp_path / "one.png")
    draw_cases([make_case("a", "LPS"), make_case("b", "SAL")], LABELS, tmp_path / "new" / "two.png")
    one, two = imread(tmp_path / "one.png"), imread(tmp_path / "new" / "two.png")
    assert np.array_equal(one, two)
    for colour in COLOURS[:2]:  # in the legend, unblended
        assert (np.abs(one[..., :3] - to_rgb(colour)).max(axis=2) < 0.01).sum() > 100
    assert [path.name for path in tmp_path.glob("*.png")] == ["one.png"]


def test_cases_without_truth_prediction_or_score_are_drawn(tmp_path):
    empty = make_case("empty") | {"dice": None}
    empty["truth"] = empty["prediction"] = np.zeros_like(empty["truth"])
    missed = make_case("missed") | {"dice": 0.0}
    missed["prediction"] = np.zeros_like(missed["truth"])
    draw_cases([empty, missed], LABELS, tmp_path / "cases.png")
    assert (tmp_path / "cases.png").stat().st_size > 10_000


def test_cases_that_cannot_be_drawn(tmp_path):
    with pytest.raises(TomokitError, match=r"no cases to draw in .*cases.png, got an empty list"):
        draw_cases([], LABELS, tmp_path / "cases.png")
    wrong = make_case("case_007") | {"truth": np.zeros((3, 3, 3))}
    with pytest.raises(TomokitError, match=r"case_007 needs 3D arrays of one shape .*\(3, 3, 3\)"):
        draw_cases([wrong], LABELS, tmp_path / "cases.png")
    assert list(tmp_path.iterdir()) == []


def test_scores_and_pictures_fit_together(tmp_path):
    case = make_case()
    rows = score_segmentation(case["prediction"], case["truth"], LABELS, case["affine"])
    named = [{**row, "case": "case_001"} for row in rows]
    assert pick_cases(named) == ["case_001"]


def test_a_table_has_the_colours_of_its_shares_and_the_numbers_of_its_counts():
    names, axes = ("a", "b"), ("answer", "truth")
    shares = [[0.75, 0.25], [np.nan, np.nan]]
    picture = draw_counts([[3, 1], [0, 0]], shares, names, names, axes)
    pixels = picture.reshape(-1, 3).astype(int)
    for share in (0.75, 0.25):
        colour = np.round(np.array(colormaps["cividis"](share)[:3]) * 255)
        assert (np.abs(pixels - colour).max(axis=1) <= 1).sum() > 1000
    assert picture.dtype == np.uint8
    assert not np.array_equal(picture, draw_counts([[6, 2], [0, 0]], shares, names, names, axes))
    assert not np.array_equal(picture, draw_counts([[3, 1], [0, 0]], shares, names, names, ("truth", "answer")))


def test_numbers_too_many_to_be_read_are_left_out():
    for size, written in ((20, True), (21, False)):
        names = [str(number) for number in range(size)]
        shares = np.full((size, size), 0.5)
        few, many = (draw_counts(np.full((size, size), n), shares, names, names, ("x", "y")) for n in (1, 9))
        assert few.shape[0] < 1200 and np.array_equal(few, many) != written


def test_a_table_whose_parts_do_not_fit_is_refused():
    message = r"of one shape, got \(1, 2\), \(1, 2\), 1 rows and 1 columns"
    with pytest.raises(TomokitError, match=message):
        draw_counts([[1, 2]], [[0.5, 0.5]], ["a"], ["b"], ("x", "y"))


def test_a_map_is_drawn_over_its_case(tmp_path):
    bright = make_case("a map") | {"prediction": np.zeros((20, 16, 12))}
    draw_maps([bright], tmp_path / "nothing.png")
    bright["prediction"][12:18, 10:15, 8:11] = 1
    draw_maps(
        [bright, make_case("another", "LPI") | {"prediction": bright["prediction"][::-1, ::-1, ::-1]}],
        tmp_path / "map.png",
    )
    colours = [np.round(imread(tmp_path / name)[..., :3], 2) for name in ("nothing.png", "map.png")]
    assert colours[1].shape[0] > 1.5 * colours[0].shape[0]
    # yellow over grey: less blue than red by half of viridis' own difference or more; the scale shows it in both
    yellow = [np.sum((own[..., 0] - own[..., 2] > 0.4) & (own[..., 1] > 0.4)) for own in colours]
    assert yellow[1] > 5 * yellow[0] > 0


def test_maps_that_can_not_be_drawn(tmp_path):
    with pytest.raises(TomokitError, match=r"no maps to draw in .*a\.png"):
        draw_maps([], tmp_path / "a.png")
    with pytest.raises(TomokitError, match=r"case b needs 3D arrays of one shape"):
        draw_maps([make_case("b") | {"prediction": np.zeros((2, 2, 2))}], tmp_path / "a.png")
