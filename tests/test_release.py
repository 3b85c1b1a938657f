import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
import yaml
from bundle_runs import follow, train, weights
from monai.bundle import ConfigParser
from monai.data import load_net_with_metadata
from torch import nn
from typer.testing import CliRunner

from tomokit import phantoms
from tomokit.bundles import bundles_folder, find_bundle, list_bundles
from tomokit.cli import app
from tomokit.config_rules import Source, load_source, merge
from tomokit.configs import read_config
from tomokit.engines.checkpoints import save
from tomokit.ensembles import join_runs
from tomokit.errors import TomokitError
from tomokit.files import read_json, write_json
from tomokit.lint import lint_bundle
from tomokit.release import exports, making, release_run
from tomokit.release.exports import TOLERANCE, Example, export_onnx, export_torchscript
from tomokit.release.finished import read_run
from tomokit.release.metadata import tell_training
from tomokit.release.standalone import _training, standalone_configs
from tomokit.release.training_data import TrainingData, describe_data, licence_text

# windows that MONAI places and weights alike, so that an untrained network gives the same with both
SMALL = {"patch_size": [16, 16, 16], "minimum_size": [32, 32, 32], "epochs": 1, "inferer::mode": "constant"}
SMALL |= {"amp": False}  # plain MONAI computes in float32
PLAIN_UNET = {"filters": [4, 8, 8], "strides": [1, 2, 2], "kernel_size": [3, 3, 3]}
LARGEST = {"cases": 1, "steps": {"1": {"largest": True, "minimum_ml": 0.0}}, "tried": {}}
OPTIONS = {
    "classification": {"image_size": [16, 16, 16], "network_def::network::block_inplanes": [4, 8, 8, 8]},
    "sequence": {"spacing": [8.0, 8.0, -1], "image_size": [16, 16, -1], "network_def::features": 8}
    | {"network_def::encoder::block_inplanes": [4, 4, 4, 8], "network_def::hidden": 8},
    "fusion": {"image_size": [16, 16, 16], "filters": [4, 8]},
    "longitudinal": {"image_size": [16, 16, 16], "features": 8},
}
ZOO = "LICENSE checksums configs/evaluate.json configs/inference.json configs/logging.conf configs/metadata.json "
ZOO += "configs/train.json docs/README.md models/model.pt"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clinic")
    phantoms.make_segmentation_set(folder / "segmentation", cases=5, test_cases=2, size=24, progress=False)
    phantoms.make_classification_set(folder / "classification", cases=10, test_cases=2, size=16, progress=False)
    phantoms.make_bleed_set(folder / "sequence", cases=8, test_cases=2, size=16, progress=False)
    phantoms.make_record_set(folder / "fusion", cases=24, test_cases=6, size=16, progress=False)
    phantoms.make_followup_set(
        folder / "longitudinal", cases=16, test_cases=4, size=16, change=(0.2, 0.3), progress=False
    )
    return {bundle: folder / bundle for bundle in list_bundles()}


@pytest.fixture(scope="module")
def plain_run(data, tmp_path_factory) -> Path:
    """Return a run of MONAI's own DynUNet whose label maps are postprocessed, evaluated, with its own inference."""
    run = tmp_path_factory.mktemp("runs") / "plain"
    train("segmentation", run, "networks/dynunet", dataset_dir=str(data["segmentation"]), **SMALL, **PLAIN_UNET)
    write_json(run / "postprocessing.json", LARGEST)
    follow("segmentation", run, "evaluate", rival=False)
    follow("segmentation", run, "inference")
    return run


@pytest.fixture(scope="module")
def plain_zip(plain_run, tmp_path_factory) -> Path:
    return release_run("segmentation", plain_run, tmp_path_factory.mktemp("zips") / "organs.zip").path


@pytest.fixture
def unpacked(plain_zip, data, tmp_path, monkeypatch) -> Path:
    """Return the unpacked release in an otherwise empty folder with scans, which is the current one."""
    return unpack(plain_zip, data["segmentation"], tmp_path / "empty", monkeypatch)


def unpack(path: Path, dataset: Path, folder: Path, monkeypatch) -> Path:
    """Return the folder of an unpacked release, beside which the scans of a set's test cases lie."""
    zipfile.ZipFile(path).extractall(folder)
    shutil.copytree(dataset / "imagesTs", folder / "scans")
    monkeypatch.chdir(folder)
    return folder / path.stem


def read_tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def labels_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asanyarray(nibabel.load(path).dataobj) for path in sorted(folder.glob("*.nii.gz"))}


def change(run: Path, tmp_path: Path, **keys) -> Path:
    """Return a copy of a run in whose config some keys are changed."""
    copy = tmp_path / "changed"
    shutil.copytree(run, copy)
    config = yaml.safe_load((copy / "configs" / "train.yaml").read_text()) | keys
    (copy / "configs" / "train.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return copy


# ------------------------------------------------------------------------------------------- it runs elsewhere


def test_one_command_in_an_empty_folder_gives_the_runs_own_label_maps(unpacked, plain_run):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "organs/configs/inference.json"]
    command += ["--bundle_root", "organs", "--input", "scans/", "--output_dir", "out/"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_tree(unpacked.parent / "out") == read_tree(plain_run / "inference") != {}
    assert done.stdout.rstrip().endswith("predictions: out/")


def test_monai_alone_gives_the_networks_labels(unpacked, plain_run, tmp_path):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "tomokit.py").write_text("raise ImportError('tomokit is not here')\n")
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "organs/configs/inference_monai.json"]
    command += ["--bundle_root", "organs", "--output_dir", "seen/", "--input"]
    shutil.copytree("scans", "seen")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "nothing")}
    barred = [sys.executable, "-c", "import tomokit"]
    assert subprocess.run(barred, env=environment, capture_output=True, check=False).returncode == 1
    done = subprocess.run([*command, "seen/"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_tree(Path("scans")).items() < read_tree(Path("seen")).items()  # no scan is overwritten
    empty = subprocess.run([*command, "nowhere"], env=environment, capture_output=True, text=True, check=False)
    assert empty.returncode != 0 and "nowhere" in empty.stderr
    run = plain_run.parent / "unprocessed"  # which MONAI alone does not do
    shutil.copytree(plain_run, run, dirs_exist_ok=True)
    (run / "postprocessing.json").unlink(missing_ok=True)
    follow("segmentation", run, "inference", run_dir=str(run), **{"inferer::body_crop": False})
    ours, theirs = labels_in(run / "inference"), labels_in(Path("seen"))
    theirs = {name.replace("_seg.", "."): labels for name, labels in theirs.items() if "_seg." in name}
    assert ours.keys() == theirs.keys() and len(ours) == 2
    inside = (slice(1, -1),) * 3  # at the border MONAI repeats the last voxel where ours has the padded one
    shares = [float((ours[case][inside] == theirs[case][inside]).mean()) for case in ours]
    assert min(shares) > 0.999, shares


def test_monai_label_and_deploy_get_the_same_labels_from_the_parts(unpacked, plain_run):
    """They build the network, both transforms and the inferer, and write what comes back themselves."""
    parser = ConfigParser()
    parser.read_config(str(unpacked / "configs" / "inference.json"))
    parser.config.update({"bundle_root": str(unpacked)})
    built = {
        key: parser.get_parsed_content(key) for key in ("network_def", "preprocessing", "inferer", "postprocessing")
    }
    built["network_def"].load_state_dict(torch.load(unpacked / "models" / "model.pt", weights_only=True))
    script = torch.jit.load(unpacked / "models" / "model.ts")
    for path in sorted(Path("scans").iterdir()):
        case = built["preprocessing"]({"image": str(path)})
        expected = np.asanyarray(nibabel.load(plain_run / "inference" / path.name).dataobj)
        for network in (built["network_def"].eval(), script):
            labels = built["inferer"](case["image"][None], network)[0]
            assert np.array_equal(built["postprocessing"]({**case, "pred": labels})["pred"][0].numpy(), expected)


@pytest.mark.parametrize("bundle", [name for name in list_bundles() if name in OPTIONS])  # registration: its own test
def test_every_bundle_is_released_and_does_all_the_run_did(bundle, data, tmp_path, monkeypatch):
    run = tmp_path / "run"
    train(bundle, run, dataset_dir=str(data[bundle]), epochs=1, **OPTIONS[bundle])
    follow(bundle, run, "evaluate")
    release = release_run(bundle, run, tmp_path / "answers.zip")
    assert {*ZOO.split(), "models/decision.json", "models/model.ts"} <= set(release.files)
    left_out = {line.split(":")[0] for line in release.left_out}
    onnx = {"model.onnx"} if bundle == "sequence" else set()  # whose network reads only the slices that there are
    assert left_out == {"inference_monai.json"} | onnx
    unpack(release.path, data[bundle], tmp_path / "empty", monkeypatch)
    options = {"input": "scans/"} | ({"table": make_table(data[bundle])} if bundle == "fusion" else {})
    follow(bundle, run, "inference", **options)
    gone = run.rename(tmp_path / "gone")
    monai.bundle.run(config_file="answers/configs/inference.json", output_dir="out/", **options)
    assert read_tree(tmp_path / "empty" / "out") == read_tree(gone / "inference") != {}
    dataset = str(data[bundle])
    monai.bundle.run(config_file="answers/configs/evaluate.json", dataset_dir=dataset)
    assert read_json("evaluation/metrics.json")["summary"] == read_json(gone / "metrics.json")["summary"]
    monai.bundle.run(config_file="answers/configs/train.json", dataset_dir=dataset)
    again, before = weights(Path("runs/answers"), "best"), weights(gone, "best")
    assert all(torch.equal(value, before[key]) for key, value in again.items())
    check_lint(tmp_path / "empty" / "answers")


def make_table(dataset: Path) -> str:
    entries = read_json(dataset / "dataset.json")["test"]
    write_json(
        "table.json", {Path(entry["image"]).name.removesuffix(".nii.gz"): entry["clinical"] for entry in entries}
    )
    return "table.json"


def check_lint(folder: Path) -> None:
    for stage in ("train", "evaluate", "inference"):
        found = lint_bundle([folder / "configs" / f"{stage}.json"])
        # a fusion reads its fields from what training fitted, which the linter takes for another network
        assert [finding for finding in found if finding.kind != "difference"] == []


def test_a_release_is_scored_and_trained_again(unpacked, plain_run, data):
    dataset = str(data["segmentation"])
    monai.bundle.run(config_file="organs/configs/evaluate.json", dataset_dir=dataset, rival=False)
    again, before = read_json("evaluation/metrics.json"), read_json(plain_run / "metrics.json")
    assert again["summary"] == before["summary"] and again["checkpoint"] == "model.pt"
    monai.bundle.run(config_file="organs/configs/train.json", dataset_dir=dataset)
    assert Path("runs/organs/checkpoints/best.pt").is_file()


def test_a_release_of_a_padded_network_whose_windows_need_none_is_the_network(unpacked, plain_run):
    config = read_json(unpacked / "configs" / "inference.json")
    assert config["network_def"]["_target_"] == "DynUNet"
    released = torch.load(unpacked / "models" / "model.pt", weights_only=True)
    trained = weights(plain_run, "best")
    assert all(torch.equal(value, trained[f"network.{key}"]) for key, value in released.items())
    assert len(released) == len(trained)


# --------------------------------------------------------------------------------------------- what is in it


def test_the_layout_is_the_zoos_and_the_checksums_hold(plain_zip, unpacked):
    files = read_tree(unpacked)
    more = {"configs/inference_monai.json", "models/model.ts", "models/model.onnx", "models/postprocessing.json"}
    more |= {"models/held_out.json", "models/range.json"}
    assert set(files) == set(ZOO.split()) | more
    lines = files.pop("checksums").decode().splitlines()
    assert lines == [f"{hashlib.sha256(files[name]).hexdigest()}  {name}" for name in sorted(files)]
    assert {name.split("/")[0] for name in zipfile.ZipFile(plain_zip).namelist()} == {"organs"}


def test_the_released_configs_pass_the_linter_and_tell_only_what_they_need(unpacked):
    check_lint(unpacked)
    config = read_json(unpacked / "configs" / "inference.json")
    assert not {"train", "validate", "cases", "split", "epochs", "learning_rate", "run_dir"} & set(config)
    assert config["checkpoint"] == "$@bundle_root + '/models/model.pt'" and config["input"] == "@dataset_dir"
    assert set(read_json(unpacked / "configs" / "evaluate.json")["cases"]) >= {"dataset_dir", "split", "fold"}


def test_nothing_tells_of_the_data_or_the_machine(unpacked, plain_run, data):
    # compressed parts of the TorchScript file are looked at too
    script = zipfile.ZipFile(unpacked / "models" / "model.ts")
    texts = read_tree(unpacked) | {name: script.read(name) for name in script.namelist()}
    names = [name.encode() for name in read_run(plain_run).names]
    traces = [str(data["segmentation"]).encode(), str(plain_run.parent).encode(), os.sep.encode() + b"site-packages"]
    traces += [str(Path(making.__file__).parents[1]).encode(), b"clinic", *names]
    assert len(names) == 7
    assert [(name, trace) for name, text in texts.items() for trace in traces if trace in text] == []


def test_the_metadata_is_true_to_the_run(unpacked, plain_run):
    metadata = read_json(unpacked / "configs" / "metadata.json")
    tensors = metadata["network_data_format"]
    image, pred = tensors["inputs"]["image"], tensors["outputs"]["pred"]
    assert image["spatial_shape"] == pred["spatial_shape"] == [16, 16, 16] and image["is_patch_data"]
    assert (image["modality"], image["value_range"], image["channel_def"]) == ("CT", [-1, 1], {"0": "CT"})
    assert pred["channel_def"] == {"0": "background", "1": "liver", "2": "spleen", "3": "lesion"}
    measures = read_json(plain_run / "metrics.json")
    assert metadata["eval_metrics"] == {key: measures[key] for key in ("summary", "per_class")}
    assert metadata["eval_metrics"]["summary"]["dice"]["cases"] == 2
    assert metadata["task"] == "Segmentation of liver, spleen and lesion in CT"
    assert metadata["changelog"] == {
        metadata["version"]: "DynUNet, trained for 1 epoch on 2 cases, on a data set that is not public"
    }
    versions = read_json(plain_run / "environment.json")["versions"]
    assert metadata["monai_version"] == versions["monai"] and "+" not in metadata["pytorch_version"]
    assert {"tomokit", "nibabel"} < set(metadata["required_packages_version"])
    assert metadata["authors"] == "not named"  # whoever released it did not say


@pytest.mark.parametrize(
    ("validation", "told"),
    [
        ({"epochs": 3}, "trained for 3 epochs on 7 cases"),
        ({"epochs": 0}, "its features read out of 7 cases"),
        ({"epochs": 0, "measures": 32}, "a trained network, with a regression of 32 measures of 7 cases beside it"),
    ],
)
def test_how_a_run_came_to_its_weights_is_told(validation, told):
    run = SimpleNamespace(cases={"training": 7}, environment={}, validation=validation)
    assert tell_training(run) == told


def test_monais_own_check_of_the_network_agrees_with_the_metadata(unpacked):
    configs = unpacked / "configs"
    monai.bundle.verify_net_in_out(
        "network_def", str(configs / "metadata.json"), str(configs / "inference_monai.json"), device="cpu"
    )


def test_the_page_tells_how_it_is_used_and_how_well_it_does(unpacked, plain_run):
    text = (unpacked / "docs" / "README.md").read_text()
    dice = read_json(plain_run / "metrics.json")["per_class"]["liver"]["dice"]
    assert f"| liver | dice | {dice['mean']:.3f} [" in text
    assert "--config_file organs/configs/inference.json --bundle_root organs --input scans/" in text
    assert "inference_monai.json --bundle_root organs" in text and "it does no postprocessing" in text
    assert "Licence of the training data: not known" in text
    assert "- not in it" not in text.lower()


def test_exports_compute_what_the_network_does_and_carry_the_configs(unpacked):
    script, metadata, extra = load_net_with_metadata(
        str(unpacked / "models" / "model.ts"), more_extra_files=["inference.json", "inference_monai.json"]
    )
    assert metadata == read_json(unpacked / "configs" / "metadata.json")
    for name, text in extra.items():
        assert json.loads(text) == read_json(unpacked / "configs" / name)
    import onnxruntime

    image = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(unpacked / "models" / "model.onnx")
    parser = ConfigParser(read_json(unpacked / "configs" / "inference_monai.json"))
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(unpacked / "models" / "model.pt", weights_only=True))
    with torch.no_grad():
        expected = network(image).numpy()
        assert np.abs(script(image).numpy() - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert np.abs(session.run(None, {"image": image.numpy()})[0] - expected).max() <= TOLERANCE * np.abs(expected).max()


# ------------------------------------------------------------------------------------------ parts of a release


class Noise(nn.Module):
    """A network that never computes the same twice."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image + torch.rand_like(image)


class Untold(nn.Module):
    """A network that no exporter knows how to write."""

    def forward(self, image: torch.Tensor) -> np.ndarray:
        return image.numpy()


def test_an_export_that_differs_is_left_out_with_the_difference(tmp_path):
    example = Example(Noise(), {"image": torch.ones(1, 1, 4, 4, 4)})
    found = export_torchscript(example, tmp_path / "model.ts", {}, {})
    assert found.difference is None and not (tmp_path / "model.ts").exists()
    assert found.reason.startswith("its logits differ from the network's by 0.")


def test_an_export_that_fails_is_left_out_with_the_reason(tmp_path, monkeypatch):
    example = Example(Untold(), {"image": torch.ones(1, 1, 4, 4, 4)})
    found = export_torchscript(example, tmp_path / "model.ts", {}, {})
    assert found.difference is None and found.reason.startswith("the network can't be exported: ")
    monkeypatch.setattr(exports, "ONNX_PACKAGES", ("onnx", "onnx_of_tomorrow"))
    reason = "onnx_of_tomorrow is not installed: pip install tomokit[onnx]"
    assert export_onnx(example, tmp_path / "model.onnx").reason == reason
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_unknown_inputs_is_not_exported(tmp_path):
    inference = {"evaluator": {"prepare_batch": {"extra": ["weather"]}}, "patch_size": [4, 4, 4], "modality": ["CT"]}
    found = exports.export_network(nn.Identity(), inference, tmp_path, {}, {})
    assert [export.reason for export in found] == ["no example of its input is known: 'weather'"] * 2
    del inference["patch_size"]
    found = exports.export_network(nn.Identity(), inference, tmp_path, {}, {})
    assert found[0].reason.endswith("is known: its config has none of patch_size, image_size, window")


def test_an_ensemble_is_released_and_its_members_are_what_is_trained_again(plain_run, tmp_path, data):
    second = tmp_path / "second"
    shutil.copytree(plain_run, second)
    run = join_runs([plain_run, second], tmp_path / "ensemble")
    measures = read_json(plain_run / "metrics.json") | {"checkpoint": "best.pt"}
    write_json(run / "metrics.json", measures)
    release = release_run("segmentation", run, tmp_path / "both.zip", exports=False)
    archive = zipfile.ZipFile(release.path)
    networks = {
        stage: json.loads(archive.read(f"both/configs/{stage}.json"))["network_def"]["_target_"]
        for stage in ("train", "inference")
    }
    assert networks == {"train": "tomokit.networks.PaddedNetwork", "inference": "tomokit.ensembles.Ensemble"}
    assert "an ensemble of 2 networks" in archive.read("both/docs/README.md").decode()
    assert "inference_monai.json: it is made with tomokit.ensembles.Ensemble" in release.left_out[0]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"network_def": {"_target_": "tomokit.networks.LeanUNet"}}, "it is made with tomokit.networks.LeanUNet, not"),
        ({"intensity": "$tomokit.transforms.own()"}, "it is made with $tomokit.transforms.own(), not with"),
        ({"modality": ["T1", "FLAIR"]}, "a case has several files"),
        ({"inferer": {"_target_": "tomokit.inference.SlabInferer", "regions": {}}}, "its network tells regions"),
        ({"inferer": {"_target_": "SimpleInferer"}}, "its answers are made by tomokit"),
    ],
)
def test_what_monai_alone_can_not_do_is_said(keys, reason, unpacked):
    from tomokit.release.plain_monai import find_obstacle

    config = read_json(unpacked / "configs" / "inference.json")
    assert find_obstacle(config) == ""
    assert find_obstacle(config | keys).startswith(reason)


def test_differences_of_monai_alone_are_told():
    from tomokit.postprocessing import Step
    from tomokit.release.plain_monai import list_differences

    told = list_differences({"mirror_axes": [1], "amp": True}, {1: Step(largest=True)})
    assert told[1:] == ["does no mirrored passes", "does no postprocessing", "computes in float32 on all hardware"]
    assert len(list_differences({}, {})) == 1


def test_the_licence_of_the_data_comes_from_the_catalogue_or_from_the_set_itself(tmp_path, monkeypatch):
    known = describe_data("hippocampus")
    assert known.name == "hippocampus" and known.licence == "CC BY-SA 4.0"
    assert "Licence: CC BY-SA 4.0" in licence_text(known) and "Nature Communications" in licence_text(known)
    entry = {"image": "a.nii.gz", "label": 1}
    write_json(tmp_path / "hippocampus" / "dataset.json", {"name": "Ours", "training": [entry]})
    folder = str(tmp_path / "hippocampus")  # of that name, but nobody knows it
    assert describe_data(folder) == TrainingData() and licence_text(TrainingData()) == ""
    write_json(tmp_path / "hippocampus" / "dataset.json", {"name": "Ours", "licence": "CC0", "training": [entry]})
    assert describe_data(folder).told == "Ours" and licence_text(describe_data(folder)).endswith("Licence: CC0\n")
    assert describe_data(str(tmp_path / "gone")).told == "a data set that is not public"
    monkeypatch.chdir(tmp_path)
    assert describe_data("hippocampus").told == "Ours"  # the folder of that name here, not the public set


def test_a_bundle_of_ones_own_gives_its_words_and_licence(plain_run, tmp_path):
    bundle = own_bundle(tmp_path, {"authors": "A. Nurse", "version": "0.2.0", "changelog": {"0.2.0": "two sites"}})
    release = release_run(bundle, plain_run, tmp_path / "own.zip", exports=False)
    metadata = json.loads(zipfile.ZipFile(release.path).read("own/configs/metadata.json"))
    assert (metadata["authors"], metadata["version"], metadata["changelog"]) == (
        "A. Nurse",
        "0.2.0",
        {"0.2.0": "two sites"},
    )
    bundle = own_bundle(tmp_path, {"license": "CC BY 4.0"})
    with pytest.raises(TomokitError, match=r"says the licence 'CC BY 4.0'; put its text into .*own/LICENSE"):
        release_run(bundle, plain_run, tmp_path / "licensed.zip", exports=False)
    (bundle / "LICENSE").write_text("Attribution 4.0 International\n")
    release = release_run(bundle, plain_run, tmp_path / "licensed.zip", exports=False)
    assert zipfile.ZipFile(release.path).read("licensed/LICENSE") == b"Attribution 4.0 International\n"


def own_bundle(tmp_path: Path, words: dict) -> Path:
    """Return a bundle as a plan writes it, with words of the user's own."""
    folder = tmp_path / "own"
    shutil.copytree(find_bundle("segmentation"), folder, dirs_exist_ok=True)
    metadata = read_json(find_bundle("segmentation") / "configs" / "metadata.json")
    planned = {"authors": "to be filled in", "description": "Segmentation planned for the data set clinic."}
    write_json(folder / "configs" / "metadata.json", metadata | planned | words)
    return folder


def test_an_installation_without_a_licence_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(making, "bundles_folder", lambda: tmp_path / "bundles")
    monkeypatch.setattr(making, "packages", NoLicence)
    with pytest.raises(TomokitError, match="this installation of tomokit has no LICENSE; install it again"):
        making._licence(find_bundle("segmentation"), "Apache-2.0")


class NoLicence:
    @staticmethod
    def distribution(_):
        return NoLicence

    @staticmethod
    def read_text(_):
        return None


# ----------------------------------------------------------------------------------------- what can't be released


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["release", *map(str, arguments)])


def test_the_command_prints_what_is_in_the_zip_and_keeps_an_earlier_one(plain_run, tmp_path):
    out = tmp_path / "new" / "organs.zip"
    given = ("segmentation", "--run", plain_run, "--out", out, "--no-exports")
    done = invoke(*given)
    assert done.exit_code == 0, done.output
    assert "  organs/models/model.pt" in done.output and "use, once unpacked: python -m monai.bundle run" in done.output
    before = out.read_bytes()
    assert "organs.zip is there already; give another --out, or --overwrite" in str(invoke(*given).exception)
    assert out.read_bytes() == before
    assert invoke(*given, "--overwrite").exit_code == 0


@pytest.mark.parametrize("name", ["organs", "organs.tar", "my organs.zip", ".zip"])
def test_the_zips_name_is_a_folders(name, tmp_path):
    with pytest.raises(TomokitError, match=r"--out must end in \.zip, behind the name of the folder in it"):
        release_run("segmentation", tmp_path, tmp_path / name)


def release_fails(run: Path, tmp_path: Path, message: str, bundle: str | Path = "segmentation") -> None:
    with pytest.raises(TomokitError, match=message):
        release_run(bundle, run, tmp_path / "organs.zip", exports=False)
    assert not list(tmp_path.glob("*organs.zip"))


def test_a_folder_without_a_run_is_not_released(tmp_path):
    release_fails(tmp_path, tmp_path, r"holds no run \(no configs/train.yaml\); train one")


def test_a_run_without_weights_is_not_released(plain_run, tmp_path):
    run = change(plain_run, tmp_path)
    (run / "checkpoints" / "best.pt").unlink()
    release_fails(run, tmp_path, r"no checkpoint .*best\.pt")


def test_a_run_whose_training_was_interrupted_is_not_released(plain_run, tmp_path):
    run = change(plain_run, tmp_path, epochs=30)
    release_fails(run, tmp_path, r"the training of .*changed ended after epoch 1 of 30; go on with\n.*--resume true")
    run = change(plain_run, tmp_path / "stopped", epochs=30, patience=1)
    history = [{"epoch": 1, "metric": 0.5}, {"epoch": 2, "metric": 0.4}]
    write_json(run / "validation.json", {"epochs": 2, "best": {"epoch": 1}, "history": history})
    assert read_run(run).validation["epochs"] == 2  # stopped early, by its patience


def test_a_run_that_was_not_evaluated_is_not_released(plain_run, tmp_path):
    run = change(plain_run, tmp_path)
    (run / "metrics.json").unlink()
    release_fails(run, tmp_path, "was not evaluated; `make evaluate RUN=changed` scores it")


def test_a_run_whose_measures_are_of_other_weights_is_not_released(plain_run, tmp_path):
    run = change(plain_run, tmp_path)
    write_json(run / "metrics.json", read_json(run / "metrics.json") | {"checkpoint": "best.pt, epoch 7"})
    release_fails(run, tmp_path, r"of best\.pt, epoch 7, its weights now are best\.pt, epoch 1; `make evaluate")
    write_json(run / "metrics.json", read_json(run / "metrics.json") | {"checkpoint": "elsewhere.pt"})
    release_fails(run, tmp_path, r"of elsewhere\.pt, its weights now are none of that name")


def test_a_run_is_not_released_with_another_bundle(plain_run, tmp_path):
    release_fails(
        plain_run, tmp_path, r"plain does not fit the bundle classification; give[\s\S]*`@task`", "classification"
    )
    empty = own_bundle(tmp_path, {})
    (empty / "configs" / "evaluate.yaml").unlink()
    release_fails(
        plain_run, tmp_path, r"own has no configs/evaluate\.yaml; give the bundle that .*plain was trained", empty
    )
    (empty / "configs" / "evaluate.yaml").write_text("inferrer::grid: source\n")
    release_fails(plain_run, tmp_path, r"does not fit the bundle own[\s\S]*there is no key `inferrer`", empty)


def test_a_bundle_that_predicts_by_the_training_cases_is_not_released(plain_run, tmp_path):
    bundle = own_bundle(tmp_path, {})
    path = bundle / "configs" / "inference.yaml"
    path.write_text(path.read_text() + "\nsimilar: $@cases['training']\n+initialize: ['$@similar']\n")
    release_fails(plain_run, tmp_path, "reads `cases`, which a release has not; change it", bundle)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("case_004", r"`note` names the case or patient 'case_004'"),
        ("/somewhere/imagesTs/case_004.nii.gz", r"`note` names the case or patient 'case_004\.nii\.gz'"),
        ("$torch.load('/home/me/x.pt', weights_only=True)", r"`note` holds a path: \$torch\.load\('/home/me/x"),
    ],
)
def test_what_would_tell_of_the_data_is_refused(value, message, plain_run, tmp_path):
    release_fails(
        change(plain_run, tmp_path, note=value), tmp_path, f"train.json would tell of the training.*[\\s\\S]*{message}"
    )


def test_paths_of_the_machine_are_cut_to_their_last_part(plain_run, tmp_path):
    run = read_run(change(plain_run, tmp_path, split="/home/me/splits.json", note="C:\\scans\\list"))
    config = standalone_configs_unchecked(run)
    assert config["split"] == "splits.json" and config["note"] == "list" and config["dataset_dir"] == "dataset"


def test_a_run_that_training_began_with_is_asked_for_and_not_told(plain_run, tmp_path):
    block = yaml.safe_load((plain_run / "configs" / "train.yaml").read_text())["train"]
    begun = {"_target_": "tomokit.finetuning.load_pretrained", "network": "@network", "source": "@pretrained"}
    block["trainer"]["network"] = begun
    run = change(plain_run, tmp_path, pretrained="runs/of_mary/best", train=block)
    release = release_run("segmentation", run, tmp_path / "begun.zip", exports=False)
    train = json.loads(zipfile.ZipFile(release.path).read("begun/configs/train.json"))
    assert train["pretrained"] == "PRETRAINED"
    assert "the weights or run that train.json begins with: give `--pretrained`" in release.left_out


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("$__import__('os').system('ls')", "would not be safe to run"),
        ({"_target_": "torch.load", "f": "x.pt", "weights_only": False}, "would not be safe to run"),
        ({"_target_": "scripts.net.Net"}, "needs code that a release does not carry.*[\\s\\S]*scripts.net.Net"),
    ],
)
def test_code_that_is_unsafe_or_ones_own_is_not_released(value, message, plain_run, tmp_path):
    release_fails(change(plain_run, tmp_path, note=value), tmp_path, message)


def test_the_windows_of_the_inferer_are_what_counts(plain_run, tmp_path):
    inferer = yaml.safe_load((plain_run / "configs" / "train.yaml").read_text())["inferer"]
    run = change(plain_run, tmp_path, inferer=inferer | {"roi_size": [18, 16, 16]})
    release = release_run("segmentation", run, tmp_path / "wide.zip", exports=False)
    configs = {
        name: json.loads(zipfile.ZipFile(release.path).read(f"wide/configs/{name}.json"))
        for name in ("inference", "inference_monai")
        if f"configs/{name}.json" in release.files
    }
    assert configs["inference"]["network_def"]["_target_"].endswith("PaddedNetwork")  # 18 is no multiple of 4
    assert "inference_monai" not in configs


def test_a_file_that_tells_a_folder_or_a_case_is_found_at_last(plain_run, tmp_path):
    run = change(plain_run, tmp_path)
    metadata = read_json(run / "configs" / "metadata.json")
    write_json(run / "configs" / "metadata.json", metadata | {"comment": "look at case_004 first"})
    release_fails(run, tmp_path, r"configs/metadata\.json holds 'case_004'")


def standalone_configs_unchecked(run):
    from tomokit.release.standalone import _neutral, _without_paths

    return _without_paths(_neutral(run.train, "organs", "dataset"))


def test_where_a_run_was_logged_is_not_released(plain_run):
    config = read_config(plain_run / "configs" / "train.yaml")
    layers = [load_source(str(bundles_folder() / "_layers" / f"{name}.yaml")) for name in ("wandb", "mlflow")]
    tracked = merge([Source("train", config), *layers]).config
    assert len(tracked["train"]["handlers"]) == len(config["train"]["handlers"]) + 2 and "wandb_mode" in tracked
    assert _training(tracked) == _training(config) == config


def test_a_config_that_json_can_not_hold_is_refused(plain_run, tmp_path):
    release_fails(change(plain_run, tmp_path, note={1: "a"}), tmp_path, "holds what JSON can't: a key that is no text")


def test_weights_of_another_network_are_not_released(plain_run, tmp_path):
    run = change(plain_run, tmp_path)
    save({"network.x": torch.zeros(1)}, run / "checkpoints" / "best.pt")
    release_fails(run, tmp_path, r"the run's weights do not fit the network of its config: Error\(s\) in loading")


def test_metadata_that_monai_would_not_take_is_refused(plain_run, tmp_path):
    bundle = own_bundle(tmp_path, {"version": "two"})
    release_fails(
        plain_run, tmp_path, r"metadata\.json would be wrong; correct the bundle's[\s\S]*'two' does not match", bundle
    )


def test_the_run_is_what_all_three_configs_are_made_of(plain_run):
    configs = standalone_configs(
        read_run(plain_run), find_bundle("segmentation"), "organs", "hippocampus", chosen=False
    )
    assert list(configs) == ["train", "evaluate", "inference"]
    assert {configs[stage]["dataset_dir"] for stage in ("train", "evaluate")} == {"hippocampus"}
    assert all(config["patch_size"] == [16, 16, 16] for config in configs.values())
    assert configs["inference"]["postprocessing"]["transforms"] == []
