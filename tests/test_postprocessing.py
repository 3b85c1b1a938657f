import json
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from bundle_runs import SMALL_UNET, follow, train
from monai.data import MetaTensor

from tomokit import phantoms
from tomokit.errors import TomokitError
from tomokit.postprocessing import (
    ChosenPostprocessingd,
    Step,
    choose_step,
    dice_after,
    keep_pieces,
    measure_pieces,
    predict,
    read_steps,
)


def mask(*boxes, size=20):
    """Return a mask (size, size, size) of cubes, each given by its corner and its edge."""
    result = np.zeros((size,) * 3, bool)
    for corner, edge in boxes:
        result[tuple(slice(start, start + edge) for start in corner)] = True
    return result


ORGAN, STRAY, SPECK = ((2, 2, 2), 6), ((12, 12, 12), 3), ((0, 15, 0), 1)


def test_pieces_below_a_volume_or_beside_the_largest_are_removed():
    whole = mask(ORGAN, STRAY, SPECK)
    assert np.array_equal(keep_pieces(whole, Step(largest=True), 0.001), mask(ORGAN))
    assert np.array_equal(keep_pieces(whole, Step(minimum_ml=0.002), 0.001), mask(ORGAN, STRAY))
    assert np.array_equal(keep_pieces(whole, Step(minimum_ml=0.028), 0.001), mask(ORGAN))
    assert not keep_pieces(mask(), Step(largest=True), 0.001).any()
    touching = mask(((0, 0, 0), 2), ((2, 2, 2), 2))  # at a corner
    assert np.array_equal(keep_pieces(touching, Step(largest=True), 0.001), touching)


@pytest.mark.parametrize("step", [Step(), Step(largest=True), Step(minimum_ml=0.002), Step(minimum_ml=0.1)])
def test_the_dice_from_pieces_is_that_of_the_masks(step):
    predicted, true = mask(ORGAN, STRAY, SPECK), mask(((3, 2, 2), 6), STRAY)
    after = keep_pieces(predicted, step, 0.001)
    expected = 2 * (after & true).sum() / (after.sum() + true.sum())
    assert dice_after(measure_pieces(predicted, true), step, 0.001) == pytest.approx(expected)


def test_what_helps_most_cases_is_chosen_and_what_does_not_help_is_not():
    with_strays = [measure_pieces(mask(ORGAN, STRAY), mask(ORGAN)) for _ in range(3)]
    assert choose_step(with_strays, 0.001)["step"] == {"largest": True, "minimum_ml": 0.0}
    with_specks = [measure_pieces(mask(ORGAN, STRAY, SPECK), mask(ORGAN, STRAY)) for _ in range(3)]
    chosen = choose_step(with_specks, 0.001)
    assert 0.001 < chosen["step"]["minimum_ml"] <= 0.027 and not chosen["step"]["largest"]
    assert chosen["plain"] < chosen["dice"] == 1
    perfect = [measure_pieces(mask(ORGAN, STRAY), mask(ORGAN, STRAY))] * 3
    assert choose_step(perfect, 0.001) == {"step": None, "told": None, "dice": 1.0, "plain": 1.0}


def test_a_step_must_help_three_cases_and_more_than_it_harms():
    helped = [measure_pieces(mask(ORGAN, SPECK), mask(ORGAN))]
    missed = ((2, 2, 2), 6), ((10, 10, 10), 1)  # a speck of the organ that is true and lies apart
    harmed = [measure_pieces(mask(*missed), mask(*missed))]
    found = {(n, m): choose_step(helped * n + harmed * m, 0.001)["step"] for n, m in ((1, 0), (2, 0), (3, 0), (3, 3))}
    assert [key for key, step in found.items() if step] == [(3, 0)]


def test_only_a_structure_that_is_one_piece_in_every_case_keeps_its_largest():
    pair = (ORGAN, ((12, 2, 2), 5))  # a small structure that truly has two parts
    cases = [measure_pieces(mask(ORGAN, STRAY), mask(ORGAN)) for _ in range(4)]
    assert choose_step([*cases, measure_pieces(mask(), mask())], 0.001)["step"]["largest"]
    chosen = choose_step([*cases, measure_pieces(mask(ORGAN), mask(*pair))], 0.001)["step"]
    assert not chosen["largest"] and chosen["minimum_ml"] > 0.027


def test_a_structure_that_is_never_true_gets_no_step():
    assert choose_step([measure_pieces(mask(SPECK), mask())], 0.001)["step"] is None


def test_a_case_that_is_rightly_emptied_counts_as_helped():
    cases = [measure_pieces(mask(SPECK), mask())] * 3 + [measure_pieces(mask(ORGAN), mask(ORGAN))]
    chosen = choose_step(cases, 0.001)
    assert chosen["plain"] == 0.25 and chosen["dice"] == 1 and chosen["step"]["minimum_ml"] > 0.001


def test_the_label_is_compared_where_the_logits_are():
    devices = []

    def postprocessing(data):
        devices.extend(tensor.device.type for tensor in data.values())
        return {key: torch.zeros(1, 4, 4, 4) for key in data}

    network, item = torch.nn.Identity(), {"image": torch.zeros(1, 4, 4, 4), "label": torch.zeros(1, 4, 4, 4)}
    # a CPU has no second device to compute on; the one of shapes alone stands for it
    evaluator = SimpleNamespace(
        state=SimpleNamespace(device=None), network=network, inferer=lambda image, _: image.to("meta")
    )
    predict(evaluator, postprocessing, item)
    assert devices == ["meta", "meta"]


def test_the_chosen_steps_are_done_in_ml_on_the_labels_own_grid(tmp_path):
    steps = {"1": {"largest": False, "minimum_ml": 0.05}, "2": {"largest": True, "minimum_ml": 0.0}}
    (tmp_path / "postprocessing.json").write_text(json.dumps({"steps": steps}))
    values = (
        np.where(mask(ORGAN, STRAY), 1, 0) + 2 * mask(((0, 0, 15), 2), ((16, 0, 0), 1)) + 3 * mask(((18, 18, 18), 1))
    )
    for edge, kept in ((1.0, mask(ORGAN)), (2.0, mask(ORGAN, STRAY))):  # the stray has 27 voxels: .027 or .216 ml
        label_map = MetaTensor(
            torch.from_numpy(values)[None].float(), affine=torch.diag(torch.tensor([edge] * 3 + [1]))
        )
        done = ChosenPostprocessingd("pred", tmp_path)({"pred": label_map})["pred"]
        assert np.array_equal(done[0].numpy() == 1, kept)
        assert (done == 2).sum() == 8 and (done == 3).sum() == 1
        assert torch.equal(done.affine, label_map.affine) and (label_map == 2).sum() == 9


def test_without_a_file_nothing_changes_and_a_malformed_one_is_named(tmp_path):
    label_map = MetaTensor(torch.from_numpy(mask(ORGAN, STRAY))[None].float())
    assert ChosenPostprocessingd("pred", tmp_path)({"pred": label_map})["pred"] is label_map
    (tmp_path / "postprocessing.json").write_text('{"steps": [1]}')
    with pytest.raises(TomokitError, match=r"postprocessing\.json is malformed"):
        read_steps(tmp_path / "postprocessing.json")


def test_a_run_chooses_on_its_validation_cases_and_every_stage_follows(tmp_path):
    phantoms.make_segmentation_set(tmp_path / "set", cases=5, test_cases=1, size=32, progress=False)
    sizes = {"patch_size": [16, 16, 16], "network_def": SMALL_UNET, "train::augmentation::transforms": []}
    run = train("segmentation", tmp_path / "run", dataset_dir=str(tmp_path / "set"), **sizes)
    record = json.loads((run / "postprocessing.json").read_text())
    assert record["cases"] == 1 and set(record["tried"]) == {"liver", "spleen", "lesion"}
    (run / "postprocessing.json").write_text('{"steps": {"1": {"largest": false, "minimum_ml": 1e6}}}')
    follow("segmentation", run, "evaluate", rival=False)
    (path,) = (run / "predictions").glob("*.nii.gz")
    assert not (np.asarray(nibabel.load(path).dataobj) == 1).any()
