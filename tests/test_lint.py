import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import yaml

from tomokit.config_rules import OPENING_KEYS
from tomokit.errors import TomokitError
from tomokit.lint import Finding, lint_bundle, lint_main

SCHEMA = Path(__file__).parents[1] / "bundles" / "_layers" / "metadata_schema.json"
TENSOR = {
    "type": "image", "format": "hounsfield", "num_channels": 1, "spatial_shape": ["16*n", 32, "*"],
    "dtype": "float32", "value_range": [0, 1], "is_patch_data": True, "channel_def": {"0": "image"},
}  # fmt: skip
METADATA: dict[str, Any] = {
    "schema": "https://example.org/schema.json", "version": "0.1.0", "changelog": {"0.1.0": "first"},
    "monai_version": "1.6.1", "pytorch_version": "2.13.0", "numpy_version": "2.4.6",
    "required_packages_version": {"nibabel": "5.4.2"}, "task": "t", "description": "d", "authors": "a",
    "copyright": "c",
    "network_data_format": {"inputs": {"image": TENSOR}, "outputs": {"pred": {**TENSOR, "channel_def": {"0": "a"}}}},
}  # fmt: skip
TRAIN: dict[str, Any] = yaml.safe_load("""
bundle_root: {_target_: tomokit.configs.find_bundle_root}
dataset_dir: data
split: splits.json
fold: 0
run_dir: runs/x
seed: 0
device: cpu
amp: true
epochs: 4
val_interval: 1
batch_size: 2
num_workers: 0
learning_rate: 0.1
weight_decay: 0.0
resume: false
range: 0.2
network_def: {_target_: UNet, spatial_dims: 3, in_channels: 1, out_channels: 2, channels: [4, 8], strides: [2]}
network: "$@network_def.to(@device)"
preprocessing:
  _target_: Compose
  transforms:
    - {_target_: LoadImaged, keys: [image, label]}
    - {_target_: Spacingd, keys: [image, label], pixdim: [1, 1, 1], mode: [bilinear, nearest]}
    - {_target_: RandRotated, keys: [image, label], range_x: "@range", mode: [bilinear, nearest]}
postprocessing:
  _target_: Compose
  transforms:
    - {_target_: Invertd, keys: pred, transform: "@preprocessing", orig_keys: image, nearest_interp: false}
    - {_target_: AsDiscreted, keys: pred, argmax: true}
train:
  preprocessing: "@preprocessing"
  dataset: {_target_: Dataset, data: [], transform: "@train::preprocessing"}
  dataloader: {_target_: DataLoader, dataset: "@train::dataset", batch_size: "@batch_size", shuffle: true}
  inferer: {_target_: SimpleInferer}
  loss: {_target_: DiceLoss}
  optimizer: {_target_: torch.optim.SGD, params: "$@network.parameters()", lr: "@learning_rate"}
  handlers:
    - {_target_: ValidationHandler, validator: "@validate::evaluator", interval: "@val_interval", epoch_level: true}
  trainer:
    _target_: SupervisedTrainer
    device: "@device"
    max_epochs: "@epochs"
    train_data_loader: "@train::dataloader"
    network: "@network"
    optimizer: "@train::optimizer"
    loss_function: "@train::loss"
    inferer: "@train::inferer"
    train_handlers: "@train::handlers"
validate:
  dataset: {_target_: Dataset, data: []}
  dataloader: {_target_: DataLoader, dataset: "@validate::dataset"}
  key_metric:
    val_dice: {_target_: MeanDice, include_background: false}
  handlers:
    - {_target_: CheckpointSaver, save_dir: "@run_dir", save_dict: {}, key_metric_name: val_dice}
  evaluator:
    _target_: SupervisedEvaluator
    device: "@device"
    val_data_loader: "@validate::dataloader"
    network: "@network"
    key_val_metric: "@validate::key_metric"
    val_handlers: "@validate::handlers"
initialize:
  - {_target_: tomokit.configs.check_config}
run:
  - "$@train::trainer.run()"
""")
INFERENCE: dict[str, Any] = yaml.safe_load("""
input: scans
checkpoint: best
output_dir: "$@run_dir + '/inference'"
dataset: {_target_: Dataset, data: "@input", transform: "@preprocessing"}
dataloader: {_target_: DataLoader, dataset: "@dataset", num_workers: "@num_workers"}
inferer: {_target_: SimpleInferer}
handlers:
  - {_target_: CheckpointLoader, load_path: "@checkpoint", load_dict: {model: "@network"}}
  - {_target_: ClassificationSaver, output_dir: "@output_dir"}
evaluator:
  _target_: SupervisedEvaluator
  device: "@device"
  val_data_loader: "@dataloader"
  network: "@network"
  inferer: "@inferer"
  postprocessing: "@postprocessing"
  val_handlers: "@handlers"
initialize:
  - {_target_: tomokit.configs.check_config}
run:
  - "$@evaluator.run()"
""")
NETWORK = {"network_def": {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2,
                           "channels": [8, 8], "strides": [2]}}  # fmt: skip


def put(bundle: Path, name: str, content: dict[str, Any]) -> Path:
    path = bundle / "configs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    dump = json.dumps if name.endswith(".json") else lambda c: yaml.safe_dump(c, sort_keys=False)
    path.write_text(dump(content))
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    put(tmp_path / "b", "train.yaml", TRAIN)
    put(tmp_path / "b", "inference.yaml", INFERENCE)
    put(tmp_path / "b", "networks/wide.yaml", NETWORK)
    put(tmp_path / "b", "metadata.json", METADATA)
    return tmp_path / "b"


def changed(key: str, value: Any, content: dict[str, Any] | None = None) -> dict[str, Any]:
    content = copy.deepcopy(content or TRAIN)
    *parents, last = [int(part) if part.isdigit() else part for part in key.split("::")]
    block: Any = content
    for parent in parents:
        block = block[parent]
    if value is None:
        del block[last]
    else:
        block[last] = value
    return content


def only(findings: list[Finding], kind: str) -> Finding:
    assert [finding.kind for finding in findings] == [kind], [str(finding) for finding in findings]
    return findings[0]


def lint_train(bundle: Path, key: str, value: Any) -> list[Finding]:
    return lint_bundle([put(bundle, "train.yaml", changed(key, value))])


def test_clean_bundle_has_no_findings(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lint_bundle(bundle) == []
    assert lint_main(bundle) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out


def test_all_files_of_a_folder_are_read(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(bundle, "inference.yaml", {**INFERENCE, "inptu": 1})
    put(bundle, "networks/wide.yaml", {**NETWORK, "epochz": 1})
    put(bundle, "alone.yaml", {"run": ["$1"], "initialize": ["$1"]})
    findings = lint_bundle(bundle)
    named = sorted((Path(finding.file).name, finding.kind) for finding in findings)
    assert named == [("alone.yaml", "check"), ("inference.yaml", "unread"), ("wide.yaml", "unread")]
    assert lint_main(bundle) == 1
    out = capsys.readouterr().out
    assert "inference.yaml: `inptu` is read by nothing; did you mean `input`?" in out
    assert "3 errors" in out


def test_folder_without_configs(tmp_path: Path) -> None:
    with pytest.raises(TomokitError, match=r"holds no config: expected .*train\.yaml"):
        lint_bundle(tmp_path)


# what MONAI raises before a config's own code


def test_missing_file(bundle: Path) -> None:
    finding = only(lint_bundle([bundle / "configs" / "absent.yaml"]), "missing")
    assert finding.file.endswith("absent.yaml")


def test_yaml_syntax_names_the_line(bundle: Path) -> None:
    path = bundle / "configs" / "train.yaml"
    path.write_text("a: 1\nb: [1, 2\nc: 3\n")
    assert "line 3 is not valid YAML" in only(lint_bundle([path]), "syntax").message


def test_json_syntax(bundle: Path) -> None:
    path = bundle / "configs" / "train.json"
    path.write_text('{"a": }')
    assert "Expecting value" in only(lint_bundle([path]), "syntax").message


def test_file_without_keys(bundle: Path) -> None:
    path = bundle / "configs" / "train.yaml"
    path.write_text("[1, 2]\n")
    assert "must hold keys and values" in only(lint_bundle([path]), "syntax").message


@pytest.mark.parametrize("content", [b"a: \xff\n", b"a: \x00\n"])
def test_file_that_is_not_text(bundle: Path, content: bytes) -> None:
    path = bundle / "configs" / "train.yaml"
    path.write_bytes(content)
    assert "the file can't be read: " in only(lint_bundle([path]), "syntax").message


def test_key_that_is_a_list(bundle: Path) -> None:
    path = bundle / "configs" / "train.yaml"
    path.write_text("? [a, b]\n: 1\n")
    assert "must hold keys and values" in only(lint_bundle([path]), "syntax").message


def test_unreadable_file_of_a_folder_is_reported_once(bundle: Path) -> None:
    (bundle / "configs" / "inference.yaml").write_text("a: [1\n")
    assert only(lint_bundle(bundle), "syntax").file.endswith("inference.yaml")


def test_folder_without_training_config(bundle: Path) -> None:
    (bundle / "configs" / "train.yaml").unlink()
    put(bundle, "inference.yaml", {**TRAIN, **INFERENCE})
    put(bundle, "other.yaml", {"initialize": ["$1"], "run": ["$1"]})
    assert only(lint_bundle(bundle), "check").file.endswith("other.yaml")


def test_duplicate_key(bundle: Path) -> None:
    path = bundle / "configs" / "train.yaml"
    path.write_text(path.read_text() + "epochs: 9\n")
    line = len(path.read_text().splitlines())
    assert (
        only(lint_bundle([path]), "duplicate").message == f"`epochs` is given again in line {line}; the later one wins"
    )


def test_duplicate_key_in_json(bundle: Path) -> None:
    path = put(bundle, "train.json", TRAIN)
    path.write_text(path.read_text()[:-1] + ', "epochs": 9}')
    assert "`epochs` is given twice" in only(lint_bundle([path]), "duplicate").message


def test_override_with_unknown_parent(bundle: Path) -> None:
    finding = only(lint_bundle([bundle / "configs" / "train.yaml"], {"train#trainr#x": 1}), "parent")
    assert str(finding) == "command line: `train::trainr::x`: `train` has no key `trainr`; did you mean `trainer`?"


def test_addition_of_another_kind(bundle: Path) -> None:
    layer = put(bundle, "more.yaml", {"+train#handlers": {"a": 1}})
    finding = only(lint_bundle([bundle / "configs" / "train.yaml", layer]), "parent")
    assert finding.message == "`+train#handlers` adds dict to list; both must be lists or both mappings"


def test_overlay_alone(bundle: Path) -> None:
    finding = only(lint_bundle([bundle / "configs" / "inference.yaml"]), "overlay")
    assert "inference.yaml is an overlay on train.yaml; run: python -m monai.bundle run" in finding.message


def test_missing_metadata(bundle: Path) -> None:
    (bundle / "configs" / "metadata.json").unlink()
    assert "there is no metadata.json" in only(lint_bundle(bundle), "metadata").message


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("version", None, "'version' is a required property"),
        ("network_data_format::inputs::image::dtype", "float31", "'float31' does not match"),
        ("network_data_format::inputs::image::num_channels", 0, "0 is less than the minimum of 1"),
        ("network_data_format::outputs::pred::channel_def", {"a": "b"}, "'a' does not match"),
        ("network_data_format::outputs::pred::is_patch_data", "no", "'no' is not of type 'boolean'"),
    ],
)
def test_invalid_metadata(bundle: Path, key: str, value: Any, words: str) -> None:
    put(bundle, "metadata.json", changed(key, value, METADATA))
    assert words in only(lint_bundle(bundle), "metadata").message


def test_unreadable_metadata(bundle: Path) -> None:
    (bundle / "configs" / "metadata.json").write_text("{")
    assert "is not valid JSON" in only(lint_bundle(bundle), "metadata").message


def test_monai_verifies_metadata_offline(bundle: Path) -> None:
    meta = put(bundle, "metadata.json", METADATA)
    monai.bundle.verify_metadata(meta_file=str(meta), filepath=str(SCHEMA))
    put(bundle, "metadata.json", changed("task", None, METADATA))
    with pytest.raises(ValueError, match="'task' is a required property"):
        monai.bundle.verify_metadata(meta_file=str(meta), filepath=str(SCHEMA))


# rules on the merged config: (key, planted value, kind, words of the message)
PLANTED: list[tuple[str, Any, str, str]] = [
    ("epochz", 1, "unread", "`epochz` is read by nothing; did you mean `epochs`?"),
    ("import", ["$import glob"], "unread", "`import` is read by nothing; did you mean `imports`?"),
    ("train::trainer::max_epoch", 1, "argument", "SupervisedTrainer has no argument `max_epoch`; did you mean"),
    ("train::inferer::_target_", "SimpleInfere", "target", "did you mean `SimpleInferer`?"),
    ("train::loss::reduction", "@epoch", "reference", "`@epoch`, which is not defined; did you mean `@epochs`?"),
    ("epochs", 0, "value", "`epochs` must be a whole number of at least 1, got 0"),
    ("initialize", ["$print(@seed)"], "check", "must be {_target_: tomokit.configs.check_config}, it is '$print"),
    ("validate::handlers", {"a": 1}, "handlers", "`validate::handlers` must be a list of `_target_` entries"),
    ("train::handlers", ["$None"], "handlers", "`train::handlers` must be a list of `_target_` entries"),
    ("validate::preprocesing", "@preprocessing", "unread", "nothing; did you mean `preprocessing`?"),
    ("validate::dataset::transform", "@preprocessing", "property", "expect `@validate::preprocessing` there"),
    ("validate::handlers::0::key_metric_name", "val_acc", "metric", "asks for `val_acc`, defined are: val_dice"),
    ("preprocessing::transforms::1::mode", ["bilinear", "bilinear"], "label", "resamples `label` with mode bilinear"),
    ("preprocessing::transforms::1::mode", None, "label", "`label` with mode"),
    ("preprocessing::transforms::2::mode", "bilinear", "label", "RandRotated resamples `label`"),
    ("range", 15, "rotation", "15 radians are 859°; write 0.2618 for 15°"),
    ("preprocessing::transforms::2::range_y", [-5, 5], "rotation", "range_y` is [-5, 5]"),
    ("train::dataloader::shuffle", False, "shuffle", "`train::dataloader` draws the training cases in fixed order"),
    ("validate::dataloader::shuffle", True, "shuffle", "`validate::dataloader::shuffle` is true, outside training"),
    ("train::dataset::data", "$[(lambda x: x)(1)]", "logic", "logic belongs in a named function"),
    ("train::dataset::data", "$[x for x in (1, 2)]", "logic", "a loop belongs in a named function"),
    ("train::dataset::data", "$x = 1; x", "expression", "not one Python expression"),
    ("train::dataset::data", "$os.system('ls')", "unsafe", "`os.system` can run programs"),
    ("train::dataset::data", "$torch.os.execv('ls', [])", "unsafe", "`torch.os.execv` can run programs"),
    ("train::dataset::data", "$eval('1')", "unsafe", "`eval` can run programs"),
    ("train::dataset::data", "$__import__('x')", "unsafe", "`__import__` can run programs"),
    ("train::dataset::data", "$open('x')", "unsafe", "`open` can run programs"),
    ("train::dataset::data", "$().__class__", "unsafe", "`__class__` reaches into Python's own workings"),
    ("train::dataset::data", "$torch.load('x')", "unsafe", "`torch.load` runs pickled code unless `weights_only`"),
    ("train::dataset::data", "$np.load('x', allow_pickle=True)", "unsafe", "`np.load` runs pickled code unless"),
    ("imports", ["$import subprocess"], "unsafe", "`subprocess` can run programs"),
    ("imports", ["$from os import system"], "unsafe", "`os.system` can run programs"),
    ("imports", ["$import sklearn"], "package", "runs code from the package `sklearn`"),
    ("train::inferer", {"_target_": "subprocess.run", "args": "ls"}, "unsafe", "`subprocess.run`, which can run"),
    ("train::inferer", {"_target_": "eval", "source": "1"}, "unsafe", "`eval`, which can run programs"),
    ("train::inferer", {"_target_": "monai.bundle.scripts.os.system", "command": "ls"}, "unsafe", "can run programs"),
    ("train::inferer", {"_target_": "torch.load", "f": "x"}, "unsafe", "code unless `weights_only` is true"),
    ("train::inferer", {"_target_": "scripts.net.Inferer"}, "package", "runs code from the package `scripts`"),
    ("train::inferer", {"_target_": "os.path.join"}, "package", "runs code from the package `os`"),
    ("train::inferer", "%other.yaml::inferer", "macro", "`%other.yaml::inferer`, whose path depends"),
    ("train::inferer", "%absent", "macro", "an id can't be resolved"),
    ("split", None, "opening", "the opening keys lack split"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "kind", "words"), PLANTED)
def test_planted_fault(bundle: Path, key: str, value: Any, kind: str, words: str) -> None:
    findings = lint_train(bundle, key, value)
    hits = [finding for finding in findings if finding.kind == kind]
    assert any(words in finding.message for finding in hits), [str(finding) for finding in findings]
    assert all(finding.file.endswith("train.yaml") for finding in hits)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("imports", ["$import glob", "$import os"]),
        ("train::dataset::data", "$os.path.join(@dataset_dir, 'x')"),
        ("train::dataset::data", "$torch.load('x', weights_only=True)"),
        ("train::dataset::data", "$monai.__version__"),
        ("train::dataset::data", "$np.load('x')"),
        ("train::dataset::data", {"_target_": "numpy.load", "file": "x", "allow_pickle": False}),
        ("train::dataset::data", {"_target_": "torch.load", "f": "x", "weights_only": True}),
        ("train::dataset::data", {"_target_": "dict", "a": 1}),
        ("train::dataset::data", "$torch.tensor(1, dtype=torch.float32, device='cpu')"),
        ("preprocessing::transforms::1::mode", "nearest"),
        ("preprocessing::transforms::1::keys", "$['image', 'label']"),
        (
            "preprocessing::transforms::1",
            {"_target_": "ResizeWithPadOrCropd", "keys": "label", "spatial_size": [4, 4, 4]},
        ),
        ("train::dataloader", {"_target_": "DataLoader", "dataset": "@train::dataset", "sampler": "$[@batch_size]"}),
    ],
)
def test_sound_choices_are_not_findings(bundle: Path, key: str, value: Any) -> None:
    assert lint_train(bundle, key, value) == []


# ways to run programs, pickles or other configs, each as a target's block or as an expression
KNOWN_WAYS: list[dict[str, Any] | str] = [
    {"_target_": "monai.utils.misc.run_cmd", "cmd_list": ["ls"]},
    {"_target_": "run_cmd", "cmd_list": ["ls"]},
    "$monai.utils.misc.run_cmd(['ls'])",
    {"_target_": "numpy.load", "file": "x", "allow_pickle": True},
    {"_target_": "numpy.load", "file": "x", "allow_pickle": "@amp"},
    {"_target_": "monai.data.image_reader.np.load", "file": "x", "allow_pickle": True},
    "$numpy.lib.npyio.load('x', allow_pickle=True)",
    "$np.load('x', None, True)",
    {"_target_": "torch.serialization.load", "f": "x"},
    {"_target_": "torch.jit.load", "f": "x"},
    {"_target_": "monai.utils.misc.torch.load", "f": "x"},
    "$torch.serialization.load('x')",
    "$torch.load('x', None, None, weights_only=False)",
    {"_target_": "torch.utils.cpp_extension.load_inline", "name": "x", "cpp_sources": "x"},
    "$torch.utils.cpp_extension.load_inline('x', 'x')",
    "$torch.utils.cpp_extension.load('x', 'x')",
    {"_target_": "torch.hub.load", "repo_or_dir": "x", "model": "x"},
    {"_target_": "torch.hub.load_state_dict_from_url", "url": "x"},
    {"_target_": "torch.utils.model_zoo.load_url", "url": "x"},
    "$torch.hub.load_state_dict_from_url('x')",
    {"_target_": "monai.bundle.run", "config_file": "evil.yaml"},
    {"_target_": "monai.bundle.scripts.download", "name": "x"},
    {"_target_": "monai.bundle.load", "name": "x"},
    {"_target_": "monai.bundle.ConfigWorkflow", "config_file": "evil.yaml"},
    "$monai.bundle.run(config_file='evil.yaml')",
    "$pathlib.Path('x').unlink()",
    "$pathlib.Path('x').rmdir()",
    "$os.remove('x')",
    "$monai.bundle.scripts.shutil.rmtree('x')",
    {"_target_": "monai.bundle.scripts.Path.unlink", "self": "x"},
]


@pytest.mark.parametrize("value", KNOWN_WAYS, ids=str)
def test_known_ways_to_run_code(bundle: Path, value: dict[str, Any] | str) -> None:
    findings = lint_train(bundle, "train::dataset::data", value)
    assert "unsafe" in [finding.kind for finding in findings if finding.severity == "error"]


@pytest.mark.parametrize(
    "statement",
    [
        "from monai.utils import run_cmd",
        "from monai.bundle import run",
        "from torch import load",
        "from torch import hub",
        "from numpy import load",
        "import torch.utils.cpp_extension",
    ],
)
def test_imports_of_known_ways(bundle: Path, statement: str) -> None:
    assert only(lint_train(bundle, "imports", [f"${statement}"]), "unsafe").severity == "error"


def test_missing_property(bundle: Path) -> None:
    content = changed("train::inferer", None)
    del content["train"]["trainer"]["inferer"]
    finding = only(lint_bundle([put(bundle, "train.yaml", content)]), "property")
    assert finding.message == "`train::inferer` is missing, which MONAI's tools look up as `train_inferer`"


def test_missing_inference_property(bundle: Path) -> None:
    overlay = changed("inferer", None, INFERENCE)
    del overlay["evaluator"]["inferer"]
    findings = lint_bundle([bundle / "configs" / "train.yaml", put(bundle, "inference.yaml", overlay)])
    assert only(findings, "property").key == "inferer"


def test_argmax_before_linear_inversion(bundle: Path) -> None:
    steps = TRAIN["postprocessing"]["transforms"][::-1]
    finding = only(lint_train(bundle, "postprocessing::transforms", steps), "inversion")
    assert "Invertd interpolates pred linearly after its argmax" in finding.message


@pytest.mark.parametrize("reduce", ["labels", "logits"])
def test_argmax_of_what_the_inferer_gives_as_labels(bundle: Path, reduce: str) -> None:
    inferer = {"_target_": "tomokit.inference.SlabInferer", "roi_size": [8, 8, 8], "reduce": reduce}
    findings = lint_bundle(
        [bundle / "configs" / "train.yaml", put(bundle, "inference.yaml", changed("inferer", inferer, INFERENCE))]
    )
    found = [finding.message for finding in findings if finding.kind == "labels"]
    if reduce == "logits":
        assert not found
    else:
        assert found[0].startswith(
            "`postprocessing::transforms::0`: Invertd works on logits, but the inferer gives labels"
        )
        assert found[1].startswith("`postprocessing::transforms::1`: AsDiscreted works on logits")


def test_resampler_whose_default_mode_is_unknown(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "preprocessing::transforms::1"
    only(lint_train(bundle, key, {"_target_": "scripts.Spacingd", "keys": "label"}), "package")
    monkeypatch.setattr("tomokit.errors.Spacingd", lambda keys: keys, raising=False)
    assert lint_train(bundle, key, {"_target_": "tomokit.errors.Spacingd", "keys": "label"}) == []


def test_opening_keys_in_another_order(bundle: Path) -> None:
    content = {key: TRAIN[key] for key in [*reversed(OPENING_KEYS), *TRAIN]}
    assert (
        "must open with the keys bundle_root, "
        in only(lint_bundle([put(bundle, "train.yaml", content)]), "opening").message
    )


def test_inference_keys(bundle: Path) -> None:
    overlay = changed("output_dir", None, INFERENCE)
    overlay["handlers"] = overlay["handlers"][:1]
    findings = lint_bundle([bundle / "configs" / "train.yaml", put(bundle, "inference.yaml", overlay)])
    assert only(findings, "opening").message == "inference lacks the keys output_dir"


@pytest.mark.parametrize("key", ["network_def", "network_def::channels"])
def test_overlay_with_another_network(bundle: Path, key: str) -> None:
    value = NETWORK["network_def"] if key == "network_def" else [8, 8]
    overlay = put(bundle, "inference.yaml", {**INFERENCE, key: value})
    finding = only(lint_bundle([bundle / "configs" / "train.yaml", overlay]), "difference")
    assert f"`{key}` is built differently from training" in finding.message


def test_standalone_inference_with_another_network(bundle: Path) -> None:
    merged = {**TRAIN, **INFERENCE}
    assert lint_bundle([put(bundle, "inference.yaml", merged)]) == []
    finding = only(lint_bundle([put(bundle, "inference.yaml", {**merged, **NETWORK})]), "difference")
    assert finding.message == "`network_def` is not the one of train.yaml; build both alike"


def test_lint_neither_runs_nor_imports_foreign_code(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bundle / "hostile_scripts.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(bundle))
    findings = lint_train(bundle, "train::inferer", {"_target_": "hostile_scripts.Inferer"})
    assert only(findings, "package").severity == "warning"
    assert "hostile_scripts" not in sys.modules


def test_verify_metadata_on_the_command_line(bundle: Path) -> None:
    command = [sys.executable, "-m", "monai.bundle", "verify_metadata", "--filepath", str(SCHEMA)]
    meta = str(bundle / "configs" / "metadata.json")
    done = subprocess.run([*command, "--meta_file", meta], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "skipped downloading" in done.stdout + done.stderr
