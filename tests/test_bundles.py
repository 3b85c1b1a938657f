import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
from bundle_runs import SMALL_UNET, config, follow, layer, same_weights, train, weights
from monai.bundle import ConfigWorkflow

from tomokit import phantoms
from tomokit.bundles import bundles_folder, find_bundle, list_bundles
from tomokit.datasets import read_entries
from tomokit.errors import TomokitError
from tomokit.lint import lint_bundle
from tomokit.records import fit_records, write_records

SIZES = {"patch_size": [32, 32, 32], "minimum_size": [32, 32, 32]}
SMALL = SIZES | {"network_def": SMALL_UNET}
NETWORKS = {
    "segmentation": "attention_unet context_attention_unet dynamic_unet dynunet residual_unet separable_unet "
    "slicewise_dynamic_unet swin_unetr task_heads vnet vnet_slim",
    "classification": "cnn densenet inception resnet10 resnet18 resnet34 resnet50 senet sequence unet_encoder vit",
    "sequence": "attention forward last_state logsumexp lstm max slices whole_volume",
    "fusion": "concatenate film image_only record_only",
    "longitudinal": "resnet inception",
    "enhancement": "",
    "anomaly": "vae",
    "registration": "",
    "pretraining": "",
}
LAYERED = [(bundle, f"networks/{name}") for bundle, names in NETWORKS.items() for name in names.split()]
# whose checkpoints would take gigabytes; their width is tested without weights, in test_classifiers
WIDE = ("networks/resnet10", "networks/resnet18", "networks/resnet34", "networks/resnet50")
HEAVY = ("networks/vnet", "networks/senet", "networks/swin_unetr")  # of which an average would be one more copy
# of the small sets below; coarse slices, as those phantoms have them
OPTIONS = {"segmentation": SIZES, "sequence": {"spacing": [8.0, 8.0, -1], "image_size": [24, 24, -1]}}
OPTIONS |= {"longitudinal": {"image_size": [16, 16, 16]}, "anomaly": {"modality": ["CT"]}}
OPTIONS |= {"pretraining": {"patch_size": [16, 16, 16]}}
OPTIONS |= {
    "enhancement": {"patch_size": [16, 16, 16], "window": [32, 32, 32], "filters": [4, 8, 8], "mirror_axes": []}
}
OPTIONS |= {"registration": {"image_size": [16, 16, 16]}}
# the score of all cases, where it is no AUC, and the most that it can be
KEYS = {"segmentation": ("dice", 1), "registration": ("dice", 1), "enhancement": ("psnr", 100)}
KEYS |= {"pretraining": ("error", 100)}
MEASURED = ("classification", "sequence", "fusion")  # beside which stand rivals that see measures


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    phantoms.make_segmentation_set(folder / "volumes", cases=8, test_cases=2, size=32, progress=False)
    phantoms.make_classification_set(folder / "shapes", cases=24, test_cases=6, size=32, progress=False)
    phantoms.make_bleed_set(folder / "heads", cases=14, test_cases=6, size=24, progress=False)
    phantoms.make_record_set(folder / "records", cases=24, test_cases=6, size=16, progress=False)
    phantoms.make_followup_set(folder / "pairs", cases=16, test_cases=4, size=16, change=(0.2, 0.3), progress=False)
    phantoms.make_segmentation_set(folder / "scans", "MRI", cases=6, test_cases=2, size=32, progress=False)
    phantoms.make_segmentation_set(folder / "bodies", "MRI", cases=16, test_cases=3, size=24, progress=False)
    names = {"enhancement": "scans", "segmentation": "volumes", "classification": "shapes", "sequence": "heads"}
    names |= {"fusion": "records", "longitudinal": "pairs", "anomaly": "volumes", "registration": "bodies"}
    names |= {"pretraining": "volumes"}
    return {bundle: str(folder / name) for bundle, name in names.items()}


@pytest.fixture(scope="session")
def small_run(data, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "small"
    train("segmentation", run, dataset_dir=data["segmentation"], **SMALL)
    follow("segmentation", run, "evaluate")
    return run


def test_every_network_has_a_run_here():
    layers = {
        (name, f"networks/{path.stem}")
        for name, folder in list_bundles().items()
        for path in folder.glob("configs/networks/*.yaml")
    }
    assert layers and layers == set(LAYERED)


@pytest.mark.parametrize("bundle", NETWORKS)
def test_a_bundle_trains_resumes_evaluates_and_infers(bundle, data, tmp_path, monkeypatch):
    options = {"dataset_dir": data[bundle]} | OPTIONS.get(bundle, {})
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("tomokit.engines.training.write_json", stop_here)  # after the first epoch's checkpoint
        with pytest.raises(RuntimeError):
            train(bundle, run, **options)
    first = weights(run)
    train(bundle, run, **options, resume=True)
    assert not same_weights(first, weights(run))
    assert [entry["epoch"] for entry in json.loads((run / "validation.json").read_text())["history"]] == [1, 2]
    assert len(json.loads((run / "environment.json").read_text())["resumed"]) == 1
    check_scores(bundle, run)
    follow(bundle, run, "inference")
    stages = sorted(path.stem for path in (run / "configs").glob("*.yaml"))
    assert stages == ["evaluate", "inference", "train"]


@pytest.mark.parametrize(("bundle", "layer"), LAYERED, ids=[Path(layer).stem for _, layer in LAYERED])
def test_a_network_trains_and_is_scored(bundle, layer, data, tmp_path):
    options = {"dataset_dir": data[bundle], "epochs": 1} | OPTIONS.get(bundle, {})
    if layer in WIDE:
        options |= {"network_def::network::block_inplanes": [4, 8, 16, 32]}
    if layer in HEAVY:
        options |= {"weight_averaging": 0}
    train(bundle, tmp_path / "run", layer, **options)
    # the rivals are the same for every network
    check_scores(bundle, tmp_path / "run", rival=False)


def check_scores(bundle: str, run: Path, **options: Any) -> None:
    cheap = {"registration": {"rivals": ["none", "affine"]}, "enhancement": {"rivals": ["gaussian"]}}
    cheap |= {name: {"feature_models": []} for name in MEASURED}
    follow(bundle, run, "evaluate", **cheap.get(bundle, {}), **options)
    measures = json.loads((run / "metrics.json").read_text())
    key, most = KEYS.get(bundle, ("auc", 1))
    assert 0 <= measures["summary"][key]["mean"] <= most
    assert measures["checkpoint"].startswith("best.pt, epoch ")


def stop_here(*_):
    raise RuntimeError("stopped")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 3}, "`epochs` is 3, the run began with 2"),
        ({"batch_size": 1}, "`batch_size` is 1, the run began with 2"),
        ({"seed": 5}, "`seed` is 5, the run began with 0"),
        ({"cases#test": ["case_007"]}, "`cases` is"),
    ],
)
def test_a_run_is_not_resumed_with_what_would_change_its_meaning(change, message, small_run, data):
    before = (small_run / "configs" / "train.yaml").read_text()
    lists = {"cases#training": [f"case_00{i}" for i in range(5)], "cases#validation": [], "cases#test": ["case_006"]}
    options = SMALL | (lists if "cases#test" in change else {}) | change
    with pytest.raises(RuntimeError) as caught:
        train("segmentation", small_run, dataset_dir=data["segmentation"], resume=True, **options)
    text = str(find_cause(caught.value))
    assert message in text and "--resume true" in text
    assert (small_run / "configs" / "train.yaml").read_text() == before


def test_a_run_is_not_resumed_on_other_data(data, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(data["segmentation"], copy)
    run = train("segmentation", tmp_path / "run", dataset_dir=str(copy), **SMALL)
    label = sorted(copy.glob("labelsTr/*"))[0]
    image = nibabel.load(label)
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj)[::-1].copy(), image.affine, image.header), label)
    with pytest.raises(RuntimeError) as caught:
        train("segmentation", run, dataset_dir=str(copy), **SMALL, resume=True)
    assert "the cases' files are not those the run began with" in str(find_cause(caught.value))


@pytest.mark.parametrize("name", list_bundles())
def test_a_bundle_is_clean_under_lint(name):
    assert lint_bundle(find_bundle(name)) == []


@pytest.mark.parametrize("name", list_bundles())
def test_monai_finds_its_properties(name, data, tmp_path):
    if name == "fusion":  # its later stages read what training fitted
        write_records(tmp_path, fit_records(read_entries(Path(data[name])), {"age": "number"}))
    for files, kind in ((("train",), "train"), (("train", "evaluate"), "infer"), (("train", "inference"), "infer")):
        workflow = ConfigWorkflow(
            config(name, *files),
            workflow_type=kind,
            init_id="no_initialize",
            dataset_dir=data[name],
            run_dir=str(tmp_path),
        )
        workflow.initialize()
        assert workflow.check_properties() == []


@pytest.mark.parametrize("name", list_bundles())
def test_train_opens_with_the_common_keys_and_holds_the_common_start(name):
    text = Path(config(name, "train")[0]).read_text()
    keys = [line.split(":")[0] for line in text.splitlines() if line[:1].isalpha()]
    assert (
        keys[:15]
        == (
            "bundle_root dataset_dir split fold run_dir seed device amp epochs val_interval batch_size num_workers "
            "learning_rate weight_decay resume"
        ).split()
    )


def test_a_run_leaves_what_the_design_lists(small_run):
    found = {str(path.relative_to(small_run)) for path in small_run.rglob("*") if path.is_file()}
    expected = {"configs/train.yaml", "configs/evaluate.yaml", "configs/metadata.json", "configs/logging.conf"}
    expected |= {"environment.json", "metrics.json", "validation.json", "cases.csv", "overlay.png", "range.json"}
    expected |= {"checkpoints/best.pt", "checkpoints/last.pt"}
    expected |= {"predictions/case_006.nii.gz", "predictions/case_007.nii.gz"}
    assert expected <= found
    assert any(name.startswith("tensorboard/events") for name in found)
    environment = json.loads((small_run / "environment.json").read_text())
    assert {"versions", "hardware", "git_revision", "data_hash", "seed", "determinism", "precision"} <= set(environment)
    rows = list(csv.DictReader((small_run / "cases.csv").open()))
    assert [(row["case"], row["class"]) for row in rows] == [
        (case, name) for case in ("case_006", "case_007") for name in ("liver", "spleen", "lesion")
    ]
    measures = json.loads((small_run / "metrics.json").read_text())
    assert set(measures["per_class"]) == {"liver", "spleen", "lesion"}
    assert "threshold" in measures["rivals"]
    assert len(measures["summary"]["dice"]["ci95"]) == 2


def test_the_case_lists_of_a_run_are_disjoint_and_complete(small_run, data):
    import yaml

    cases = yaml.safe_load((small_run / "configs" / "train.yaml").read_text())["cases"]
    parts = [set(cases[part]) for part in ("training", "validation", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 8
    assert cases["test"] == ["case_006", "case_007"]


def test_a_run_runs_again_from_its_own_configs(small_run, tmp_path):
    again = tmp_path / "again"
    monai.bundle.run(config_file=str(small_run / "configs" / "train.yaml"), run_dir=str(again))
    assert same_weights(weights(small_run), weights(again))
    before = (small_run / "metrics.json").read_text()
    monai.bundle.run(config_file=str(small_run / "configs" / "evaluate.yaml"))
    keep = ("summary", "per_class", "rivals")
    now = json.loads((small_run / "metrics.json").read_text())
    assert {key: now[key] for key in keep} == {key: json.loads(before)[key] for key in keep}


def test_evaluation_and_inference_write_the_same_label_maps(small_run):
    follow("segmentation", small_run, "inference")
    assert read_tree(small_run / "inference") == read_tree(small_run / "predictions") != {}


def read_tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_predictions_are_scored_and_drawn_from_where_they_are_written(small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    shutil.rmtree(run / "predictions")
    (run / "overlay.png").unlink()
    follow("segmentation", run, "evaluate", run_dir=str(run), output_dir=str(tmp_path / "elsewhere"))
    assert read_tree(tmp_path / "elsewhere") == read_tree(small_run / "predictions")
    assert (run / "overlay.png").exists() and not (run / "predictions").exists()


def test_a_run_rerun_in_place_keeps_its_metadata(small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    monai.bundle.run(config_file=str(run / "configs" / "train.yaml"), run_dir=str(run))
    assert (run / "configs" / "metadata.json").exists() and (run / "configs" / "logging.conf").exists()
    assert (tmp_path / "run.1" / "metrics.json").exists() and not (run / "metrics.json").exists()


def test_a_folder_of_anything_else_is_not_moved(data, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").touch()
    with pytest.raises(RuntimeError) as caught:
        train("segmentation", tmp_path / "precious", dataset_dir=data["segmentation"], **SMALL)
    assert "precious holds something else than a run" in str(find_cause(caught.value))
    assert (tmp_path / "precious" / "thesis.txt").exists()


def test_a_network_that_can_not_be_built_moves_no_run(small_run, data):
    broken = SMALL | {"network_def": SMALL_UNET | {"strides": [1, 2]}}
    with pytest.raises(RuntimeError):
        train("segmentation", small_run, dataset_dir=data["segmentation"], **broken)
    assert (small_run / "checkpoints" / "best.pt").exists()


def test_a_split_without_test_cases_can_not_be_scored(small_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(small_run, run)  # a run keeps the config that it was last evaluated with
    lists = {"cases#training": ["case_000"], "cases#validation": [], "cases#test": []}
    with pytest.raises(RuntimeError) as caught:
        follow("segmentation", run, "evaluate", **lists)
    assert "no test case to score" in str(find_cause(caught.value))


def test_a_prediction_lies_on_its_source_with_the_same_header(small_run, data):
    for path in (small_run / "predictions").iterdir():
        source = nibabel.load(Path(data["segmentation"]) / "imagesTs" / path.name)
        prediction = nibabel.load(path)
        assert prediction.shape == source.shape
        assert np.array_equal(prediction.affine, source.affine)
        headers = source.header, prediction.header
        differing = {key for key in source.header if headers[0][key].tobytes() != headers[1][key].tobytes()}
        assert differing <= {"datatype", "bitpix", "scl_slope", "scl_inter"}


def test_a_bundle_runs_in_its_own_folder(data, tmp_path, monkeypatch):
    monkeypatch.chdir(find_bundle("segmentation"))
    small = SMALL | {"dataset_dir": data["segmentation"], "run_dir": str(tmp_path / "run"), "epochs": 1}
    monai.bundle.run(config_file="configs/train.yaml", **small)
    monai.bundle.run(config_file=[str(tmp_path / "run/configs/train.yaml"), "configs/evaluate.yaml"])
    assert (tmp_path / "run" / "metrics.json").exists()


def test_an_existing_run_is_moved_aside_and_never_mixed(small_run, data, tmp_path):
    run = train("segmentation", tmp_path / "run", dataset_dir=data["segmentation"], **SMALL)
    (run / "marker").touch()
    train("segmentation", run, dataset_dir=data["segmentation"], **SMALL)
    assert (tmp_path / "run.1" / "marker").exists() and not (run / "marker").exists()


def test_resuming_a_finished_run_changes_nothing(small_run, data):
    before = {path: path.read_bytes() for path in (small_run / "checkpoints").iterdir()}
    train("segmentation", small_run, dataset_dir=data["segmentation"], **SMALL, resume=True)
    assert {path: path.read_bytes() for path in (small_run / "checkpoints").iterdir()} == before


def test_a_mixed_pair_of_optimizers_serves_both_bundles(data, tmp_path):
    for bundle in list_bundles():
        options = SMALL if bundle == "segmentation" else OPTIONS.get(bundle, {})
        run = train(bundle, tmp_path / bundle, files=(layer("sgd"),), dataset_dir=data[bundle], **options, epochs=1)
        content = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
        assert content["optimizer"]["param_groups"][0]["momentum"] == 0.99


def test_a_run_without_validation_ends_with_its_last_weights(data, tmp_path, recwarn):
    lists = {"cases#training": ["case_000", "case_001"], "cases#validation": [], "cases#test": ["case_007"]}
    run = train("segmentation", tmp_path / "run", dataset_dir=data["segmentation"], **SMALL, **lists)
    assert json.loads((run / "validation.json").read_text())["best"] is None
    assert not [warning for warning in recwarn if "dataloader" in str(warning.message)]
    follow("segmentation", run, "evaluate")
    assert json.loads((run / "metrics.json").read_text())["checkpoint"] == "last.pt, epoch 2"
    assert (run / "predictions" / "case_007.nii.gz").exists()


def test_two_modalities_of_a_case_are_two_channels(data, tmp_path):
    """CT and MRI phantoms of one seed are the same patients on the same grid."""
    for modality in ("CT", "MRI"):
        phantoms.make_segmentation_set(tmp_path / modality, modality, cases=5, test_cases=1, size=32, progress=False)
    content = json.loads((tmp_path / "CT" / "dataset.json").read_text())
    for entry in [*content["training"], *content["test"]]:
        entry["image"] = [f"CT/{entry['image']}", f"MRI/{entry['image']}"]
        entry["label"] = f"CT/{entry['label']}"
    content["modality"] = {"0": "CT", "1": "MRI"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    intensity = {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True}
    options = SMALL | {"dataset_dir": str(tmp_path), "modality": ["CT", "MRI"], "intensity": intensity, "seed": 1}
    run = train("segmentation", tmp_path / "run", **options)
    assert next(iter(weights(run).values())).shape[1] == 2
    follow("segmentation", run, "evaluate")
    follow("segmentation", run, "inference")
    assert read_tree(run / "inference") == read_tree(run / "predictions") != {}
    metadata = json.loads((run / "configs" / "metadata.json").read_text())["network_data_format"]["inputs"]["image"]
    assert (metadata["num_channels"], metadata["channel_def"]) == (2, {"0": "CT", "1": "MRI"})
    for path in (run / "predictions").iterdir():
        sources = list(tmp_path.glob(f"CT/images*/{path.name}"))
        assert np.array_equal(nibabel.load(path).affine, nibabel.load(sources[0]).affine)


def test_two_processes_train_one_network(data, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "monai.bundle", "run"]
    files = str([*config("segmentation", "train"), layer("smoke"), layer("multi_gpu")])
    options = {"--dataset_dir": data["segmentation"], "--run_dir": str(tmp_path / "run"), "--network_def": SMALL_UNET}
    options |= {key: value for name, value in SIZES.items() for key in [f"--{name}"]}
    arguments = [str(text) for pair in options.items() for text in pair]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--config_file", files, *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "run" / "validation.json").read_text())
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    share = 3  # of five cases, one of them drawn by both; what does not fill a batch of two is left out
    assert record["epochs"] == 2 and content["iteration"] == 2 * (share // 2)
    follow("segmentation", tmp_path / "run", "evaluate")  # in one process


def test_bad_data_stops_before_a_run_folder_is_made(data, tmp_path):
    with pytest.raises(RuntimeError) as caught:
        train("segmentation", tmp_path / "run", dataset_dir=data["segmentation"], patch_size=[64, 64, 64])
    problem = find_cause(caught.value)
    assert "case_000: patch_size (64, 64, 64) is larger than the volume" in str(problem)
    assert not (tmp_path / "run").exists()


def test_a_missing_data_set_says_how_to_get_it(tmp_path):
    with pytest.raises(RuntimeError) as caught:
        train("segmentation", tmp_path / "run", dataset_dir="phantom-nowhere")
    assert "tomokit data get phantom-nowhere --from FOLDER" in str(find_cause(caught.value))


def test_an_untrained_run_can_not_be_evaluated(data, tmp_path):
    with pytest.raises(RuntimeError) as caught:
        monai.bundle.run(
            config_file=config("segmentation", "train", "evaluate"),
            dataset_dir=data["segmentation"],
            run_dir=str(tmp_path / "none"),
        )
    assert "holds no trained run" in str(find_cause(caught.value))


def find_cause(error: BaseException | None) -> TomokitError:
    while error is not None and not isinstance(error, TomokitError):
        error = error.__cause__ or error.__context__
    assert error is not None, "no TomokitError in the chain"
    return error


@pytest.mark.parametrize("name", list_bundles())
def test_the_metadata_verb_accepts_the_bundle_offline(name):
    metadata = find_bundle(name) / "configs" / "metadata.json"
    schema = bundles_folder() / "_layers" / "metadata_schema.json"
    monai.bundle.verify_metadata(meta_file=str(metadata), filepath=str(schema))


def test_the_network_verb_runs_in_the_bundles_folder():
    verb = [sys.executable, "-m", "monai.bundle", "verify_net_in_out", "network_def", "--device", "cpu"]
    files = ["--meta_file", "configs/metadata.json", "--config_file", "configs/train.yaml"]
    done = subprocess.run([*verb, *files], capture_output=True, text=True, cwd=find_bundle("segmentation"))
    assert done.returncode == 0, done.stderr
    assert "verified with no error" in done.stdout + done.stderr


@pytest.mark.parametrize("name", list_bundles())
def test_every_network_fits_its_metadata(name):
    from monai.bundle import verify_net_in_out

    metadata = str(find_bundle(name) / "configs" / "metadata.json")
    for layers in [(), *((own,) for bundle, own in LAYERED if bundle == name)]:
        verify_net_in_out("network_def", metadata, config(name, "train", *layers), device="cpu")


@pytest.mark.parametrize(("export", "suffix"), [("ckpt_export", "ts"), ("onnx_export", "onnx")])
def test_an_exported_network_computes_the_same(export, suffix, small_run, tmp_path):
    path = tmp_path / f"model.{suffix}"
    configs = small_run / "configs"
    getattr(monai.bundle, export)(
        "network_def",
        filepath=str(path),
        ckpt_file=str(small_run / "checkpoints" / "best.pt"),
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "train.yaml"),
        input_shape=[1, 1, 32, 32, 32],
        bundle_root=str(small_run),
    )
    workflow = ConfigWorkflow(str(configs / "train.yaml"), workflow_type="train")
    network = workflow.parser.get_parsed_content("network_def").eval()
    network.load_state_dict(weights(small_run, "best"))
    image = torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(image).numpy()
    if suffix == "ts":
        found = torch.jit.load(path)(image).detach().numpy()
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        found = session.run(None, {session.get_inputs()[0].name: image.numpy()})[0]
    assert np.allclose(found, expected, atol=1e-4)
