import copy
import errno
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow

from tomokit import configs
from tomokit.config_rules import Merged, Source, flip_findings, merge
from tomokit.errors import TomokitError

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")

BASE: dict[str, Any] = {
    "bundle_root": {"_target_": "tomokit.configs.find_bundle_root"},
    "seed": 0,
    "device": "cpu",
    "epochs": 4,
    "batch_size": 2,
    "learning_rate": 0.1,
    "resume": False,
    "channels": 1,
    "verbose": False,
    "network_def": {
        "_target_": "torch.nn.Conv3d",
        "in_channels": "@channels",
        "out_channels": "$@channels + 1",
        "kernel_size": 3,
    },
    "train": {
        "optimizer": {
            "_target_": "torch.optim.SGD",
            "params": "$@network_def.parameters()",
            "lr": "@learning_rate",
        },
        "scheduler": {
            "_target_": "torch.optim.lr_scheduler.StepLR",
            "optimizer": "@train::optimizer",
            "step_size": "@epochs",
        },
    },
    "loader": {
        "_target_": "DataLoader",
        "dataset": [1, 2, 3, 4],
        "batch_size": "@batch_size",
        "pin_memory": "@resume",
        "persistent_workers": "@verbose",
    },
    "initialize": [{"_target_": "tomokit.configs.check_config"}],
    "run": ["$@train::scheduler", "$len(list(@loader)) + @seed"],
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "configs").mkdir()
    return tmp_path


def write(bundle: Path, content: dict[str, Any], name: str = "train.yaml") -> str:
    path = bundle / "configs" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def base(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(BASE), **changes}


def run(files: str | list[str], **overrides: Any) -> None:
    monai.bundle.run(config_file=files, **overrides)


def problem_of(files: str | list[str], **overrides: Any) -> str:
    with pytest.raises(RuntimeError, match="check_config") as caught:
        run(files, **overrides)
    assert isinstance(caught.value.__cause__, TomokitError)
    return str(caught.value.__cause__)


def test_clean_config_runs(bundle: Path) -> None:
    run(write(bundle, BASE))


def test_bundle_root_is_the_folder_above_configs(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(bundle, BASE)
    monkeypatch.chdir(bundle)
    workflow = ConfigWorkflow(config_file="configs/train.yaml")
    workflow.initialize()
    assert workflow.bundle_root == str(bundle)


def test_bundle_root_without_a_run_says_what_to_do() -> None:
    with pytest.raises(TomokitError, match=r"no bundle is being run: .*python -m monai\.bundle run"):
        configs.find_bundle_root()


def test_unread_key_in_the_file(bundle: Path) -> None:
    path = write(bundle, base(epochz=3))
    assert problem_of(path) == f"{path}: `epochz` is read by nothing; did you mean `epochs`?"


def test_unread_override(bundle: Path) -> None:
    text = problem_of(write(bundle, BASE), epochz=3)
    assert text == "command line: `epochz` is read by nothing; did you mean `epochs`?"


def test_standard_key_that_this_config_does_not_read(bundle: Path) -> None:
    assert "`weight_decay` is read by nothing" in problem_of(write(bundle, BASE), weight_decay=0.1)
    run(write(bundle, base(weight_decay=0.1)))  # in a file it may serve every bundle


def test_unread_nested_key(bundle: Path) -> None:
    content = base()
    content["train"]["optimzer"] = {"_target_": "torch.nn.Identity"}
    text = problem_of(write(bundle, content))
    assert text.endswith("`train::optimzer` is read by nothing; did you mean `optimizer`?")


def test_key_read_by_itself_alone_is_unread(bundle: Path) -> None:
    assert "`extra` is read by nothing" in problem_of(write(bundle, base(extra={"a": 1, "b": "@extra::a"})))


def test_macros_and_relative_references_count_as_reads(bundle: Path) -> None:
    content = base(step=2, width={"a": 3})
    content["train"]["scheduler"]["step_size"] = "%step"
    content["network_def"]["kernel_size"] = "@::::width::a"
    content["train"]["momentum"] = 0.5
    content["train"]["optimizer"]["momentum"] = "@::::momentum"
    content["run"].append("@epochs")
    run(write(bundle, content))


def test_orphan_of_a_later_layer_is_no_mistake(bundle: Path) -> None:
    layer = {"network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}}
    files = [write(bundle, BASE), write(bundle, layer, "layer.yaml")]
    run(files)
    assert "`channels` is read by nothing" in problem_of(files, channels=1)


def test_unknown_argument_and_nearest(bundle: Path) -> None:
    content = base()
    content["train"]["optimizer"]["momentun"] = 0.9
    text = problem_of(write(bundle, content))
    assert "`train::optimizer::momentun`: SGD has no argument `momentun`; did you mean `momentum`?" in text


def test_unknown_argument_from_the_command_line(bundle: Path) -> None:
    text = problem_of(write(bundle, BASE), **{"train#scheduler#step_sise": 3})
    assert text.startswith("command line: `train::scheduler::step_sise`: StepLR has no argument `step_sise`")


def test_near_miss_among_free_keywords(bundle: Path) -> None:
    text = problem_of(write(bundle, BASE), **{"loader#batch_sise": 3})
    assert "DataLoader has no argument `batch_sise`; did you mean `batch_size`?" in text


def test_missing_argument(bundle: Path) -> None:
    content = base()
    del content["network_def"]["kernel_size"]
    assert problem_of(write(bundle, content)).endswith("`network_def`: Conv3d needs the argument `kernel_size`")


def test_callable_mode_needs_no_arguments(bundle: Path) -> None:
    content = base(make={"_target_": "torch.nn.Conv3d", "_mode_": "callable", "kernel_size": 3})
    content["run"].append("@make")
    run(write(bundle, content))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("UNett", "MONAI has no component `UNett`; did you mean `UNet`?"),
        ("torch.nn.Conv3dd", "`torch.nn` has no `Conv3dd`; did you mean `Conv3d`?"),
        ("nopackage.Network", "there is no package `nopackage`"),
        ("scripts.broken.Network", "`scripts.broken` can't be imported: No module named 'absent_module'"),
    ],
)
def test_unknown_target(bundle: Path, target: str, words: str) -> None:
    (bundle / "scripts").mkdir()
    (bundle / "scripts" / "broken.py").write_text("import absent_module\n")
    sys.modules.pop("scripts", None)
    path = write(bundle, base(network_def={"_target_": target}))
    text = problem_of(path)
    assert f"{path}: `network_def::_target_` is `{target}`, but {words}" in text


def test_undefined_reference_and_nearest(bundle: Path) -> None:
    content = base()
    content["train"]["optimizer"]["lr"] = "@learning_rat"
    text = problem_of(write(bundle, content))
    assert "`train::optimizer::lr` refers to `@learning_rat`, which is not defined" in text
    assert text.endswith("did you mean `@learning_rate`?")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("epochs", 0, "a whole number of at least 1, got 0"),
        ("epochs", "ten", "a whole number of at least 1, got 'ten'"),
        ("epochs", True, "a whole number of at least 1, got True"),
        ("batch_size", 2.5, "a whole number of at least 1, got 2.5"),
        ("val_interval", -1, "a whole number of at least 1, got -1"),
        ("num_workers", -1, "a whole number of at least 0, got -1"),
        ("fold", "a", "a whole number of at least 0, got 'a'"),
        ("patience", -2, "a whole number of at least 0, got -2"),
        ("learning_rate", 0, "a number greater than 0, got 0"),
        ("learning_rate", float("nan"), "a number greater than 0, got nan"),
        ("weight_decay", -0.1, "a number of at least 0, got -0.1"),
        ("dropout", 1.0, "a number from 0 up to, but not including, 1, got 1.0"),
        ("seed", "x", "a whole number, got 'x'"),
        ("amp", "maybe", "true or false, got 'maybe'"),
        ("resume", 3, "true or false, got 3"),
        ("deterministic", None, "true or false, got None"),
    ],
)
def test_standard_values(bundle: Path, key: str, value: Any, words: str) -> None:
    content = base(**{key: value})
    content["run"].append(f"@{key}")
    assert f"`{key}` must be {words}" in problem_of(write(bundle, content))


def test_values_spelled_as_text_become_values(bundle: Path) -> None:
    workflow = ConfigWorkflow(config_file=write(bundle, base(learning_rate="1e-3")), resume="true", epochs="3")
    workflow.initialize()
    assert [workflow.parser[key] for key in ("learning_rate", "resume", "epochs")] == [0.001, True, 3]
    assert workflow.parser.get_parsed_content("train::optimizer").param_groups[0]["lr"] == 0.001
    assert workflow.parser.get_parsed_content("resume") is True


def test_switch_of_the_file_spelled_on_the_command_line(bundle: Path) -> None:
    content = base()
    content["train"]["optimizer"]["nesterov"] = True
    content["train"]["optimizer"]["momentum"] = 0.5
    content["train"]["copy"] = {"_target_": "torch.nn.Identity", "shown": "@verbose"}
    content["run"] += ["$(@train::optimizer.defaults['nesterov'] is False) or 1 / 0", "@train::copy"]
    run(write(bundle, content), **{"train#optimizer#nesterov": "false"})


def test_expressions_are_left_alone(bundle: Path) -> None:
    run(write(bundle, base(epochs="$2 + 2", learning_rate="$1e-3")))


def test_all_problems_at_once(bundle: Path) -> None:
    path = write(bundle, base(epochs=0))
    text = problem_of(path, epochz=1, **{"network_def#out_chanels": 2})
    assert text.startswith("the config has 3 problems:\n  - command line: `epochz`")
    assert len(text.splitlines()) == 4
    assert f"{path}: `epochs` must be" in text


def test_overlay_alone_gives_the_command(bundle: Path) -> None:
    train = write(bundle, BASE)
    overlay = write(bundle, {key: BASE[key] for key in ("initialize", "run")}, "evaluate.yaml")
    text = problem_of(overlay)
    command = f"python -m monai.bundle run --config_file \"['{train}','{overlay}']\""
    assert text == f"evaluate.yaml is an overlay on train.yaml; run: {command}"


def test_train_after_its_overlay_is_named(bundle: Path) -> None:
    overlay = write(bundle, {"epochs": 2}, "evaluate.yaml")
    text = problem_of([overlay, write(bundle, BASE)])
    assert "train.yaml must come first on the line" in text


def test_workflow_built_in_python_reports_near_names_only(bundle: Path) -> None:
    workflow = ConfigWorkflow(config_file=write(bundle, BASE), epochz=3, zzzz=1)
    with pytest.raises(RuntimeError, match="check_config") as caught:
        workflow.initialize()
    assert str(caught.value.__cause__) == "`epochz` is read by nothing; did you mean `epochs`?"


def test_running_config_is_the_text_as_run(bundle: Path) -> None:
    content = base(first={"_target_": "tomokit.configs.running_config"})
    content["run"] += ["@first"]
    layer = {"network_def": {"_target_": "torch.nn.Identity"}}
    content["train"]["optimizer"]["params"] = [{"params": "$[torch.nn.Parameter(torch.zeros(1))]"}]
    workflow = ConfigWorkflow(config_file=[write(bundle, content), write(bundle, layer, "layer.yaml")], epochs=7)
    workflow.initialize()
    workflow.run()  # everything is built, and the text stays text
    expected = {**content, **layer, "epochs": 7}
    del expected["channels"]  # the layer left it without a reader
    assert workflow.parser.get_parsed_content("first") == expected
    assert {k: v for k, v in workflow.parser.get().items() if k not in ("_meta_", "channels")} == expected


def test_written_config_runs_again(bundle: Path) -> None:
    path = bundle / "configs" / "train.yaml"
    content = base(device=torch.device("cpu"), learning_rate=np.float64(1e-5), extra={"path": Path("a/b"), "t": (1, 2)})
    content["run"] += ["@extra", "@device"]
    configs.write_config(content, path, "Merged\nand run")
    text = path.read_text()
    assert text.startswith("# Merged\n# and run\nbundle_root:")
    read = configs.read_config(path)
    assert list(read) == list(content)
    assert read["device"] == "$torch.device('cpu')"
    assert read["learning_rate"] == 1e-5
    assert read["extra"] == {"path": "a/b", "t": [1, 2]}
    run(str(path))


def test_unwritable_value_names_its_key(tmp_path: Path) -> None:
    with pytest.raises(TomokitError, match=r"`a::0::b` holds a Linear, which a config file can't"):
        configs.write_config({"a": [{"b": torch.nn.Linear(1, 1)}]}, tmp_path / "x.yaml")
    assert not (tmp_path / "x.yaml").exists()


def test_read_config_explains(tmp_path: Path) -> None:
    with pytest.raises(TomokitError, match=r"absent\.yaml does not exist"):
        configs.read_config(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    with pytest.raises(TomokitError, match=r"bad\.yaml can't be read as a config"):
        configs.read_config(tmp_path / "bad.yaml")


def test_merge_tells_who_set_what() -> None:
    sources = [
        Source("a.yaml", {"x": {"y": 1, "z": [1]}, "w": 2}),
        Source("b.yaml", {"x::y": 2, "+x#z": [{"v": 1}]}),
        Source("command line", {"w": 3, "x#q#r": 1, "x#z#7": 1}),
    ]
    merged = merge(sources)
    assert merged.config == {"x": {"y": 2, "z": [1, {"v": 1}]}, "w": 3}
    files = [merged.file_of(key) for key in ("x", "x::y", "x::z::0", "x::z::1::v", "w", "x::new")]
    assert files == ["a.yaml", "b.yaml", "a.yaml", "b.yaml", "command line", "a.yaml"]
    assert [f.message for f in merged.findings] == [
        "`x::q::r`: `x` has no key `q`",
        "`x::z::7`: `x::z` has 2 entries, none is `7`",
    ]


# ------------------------------------------------------------------------------- errors after the check


def explain(error: BaseException, capsys: pytest.CaptureFixture[str], merged: Merged | None = None) -> str:
    configs._explain_exception(merged or Merged([]), type(error), error, error.__traceback__)
    return capsys.readouterr().err


def caught_while_running(bundle: Path, content: dict[str, Any]) -> tuple[BaseException, Merged]:
    path = write(bundle, content)
    with pytest.raises(RuntimeError) as caught:
        run(path)
    return caught.value, merge([Source(path, content)])


def test_failed_component_is_told_in_four_lines(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = base(network_def={"_target_": "torch.nn.Conv3d", "in_channels": 3, "out_channels": 4, "kernel_size": 1})
    content["network_def"]["groups"] = 2
    content["run"] += ["@channels"]
    error, merged = caught_while_running(bundle, content)
    lines = explain(error, capsys, merged).splitlines()
    assert len(lines) == 4
    assert re.fullmatch(r"error: `network_def` in .*train\.yaml failed", lines[0])
    assert lines[1] == "  it is: torch.nn.Conv3d"
    assert lines[2] == "  cause: ValueError: in_channels must be divisible by groups"
    saved = Path(lines[3].removeprefix("  full traceback: "))
    assert "Traceback" in saved.read_text()
    saved.unlink()


def test_failed_expression_names_its_key(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = base()
    content["run"].append("$1 / (@seed * 0)")
    error, merged = caught_while_running(bundle, content)
    lines = explain(error, capsys, merged).splitlines()
    assert "`run::2`" in lines[0]
    assert lines[2] == "  cause: ZeroDivisionError: division by zero"
    Path(lines[3].removeprefix("  full traceback: ")).unlink()


def test_own_error_is_only_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError("Failed to instantiate")
    error.__cause__ = TomokitError("case_01 holds NaN")
    assert explain(error, capsys) == "error: case_01 holds NaN\n"


def test_own_error_of_a_loader_process(capsys: pytest.CaptureFixture[str]) -> None:
    text = "Caught TomokitError in DataLoader worker process 0.\nOriginal Traceback:\n  …\n"
    error = TomokitError(f"{text}tomokit.errors.TomokitError: case_01 holds NaN\n")
    assert explain(error, capsys) == "error: case_01 holds NaN\n"


def test_interrupt_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    configs.on_interrupt()
    assert explain(KeyboardInterrupt(), capsys) == f"error: {configs.INTERRUPTED}\n"
    configs.on_interrupt("interrupted in epoch 3; go on with `--resume true`")
    try:
        assert "epoch 3" in explain(KeyboardInterrupt(), capsys)
    finally:
        configs.on_interrupt()


def test_full_disk(capsys: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError("Failed to evaluate")
    error.__context__ = OSError(errno.ENOSPC, "No space left on device")
    assert "the disk is full; free some space" in explain(error, capsys)


def test_any_other_error_is_pythons(capsys: pytest.CaptureFixture[str]) -> None:
    assert "ValueError: strange" in explain(ValueError("strange"), capsys)


def test_command_line_stops_with_one_line(bundle: Path) -> None:
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", write(bundle, BASE), "--epochz", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    output = done.stdout + done.stderr
    assert done.returncode == 2
    assert "Traceback" not in output
    lines = [line for line in output.splitlines() if "epochz" in line]
    assert lines == ["error: command line: `epochz` is read by nothing; did you mean `epochs`?"]


@pytest.mark.parametrize(
    ("transform", "flips"),
    [
        ({"_target_": "tomokit.augmentation.BatchRandFlipd", "keys": "image", "spatial_axis": "@flip_axes"}, True),
        ({"_target_": "tomokit.inference.MirroredInferer", "inferer": None, "spatial_axis": [0, 1]}, True),
        ({"_target_": "tomokit.inference.MirroredInferer", "inferer": None, "spatial_axis": []}, False),
        ({"_target_": "tomokit.inference.SlabInferer", "mirror_axes": "@flip_axes"}, True),
        ({"_target_": "tomokit.inference.SlabInferer", "mirror_axes": [1, 2]}, False),
        ({"_target_": "tomokit.inference.SlabInferer"}, False),
        ({"_target_": "RandFlipd", "keys": "image", "spatial_axis": 0}, True),
        ({"_target_": "RandFlipd", "keys": "image"}, True),
        ({"_target_": "monai.transforms.Flipd", "keys": "image", "spatial_axis": [0, 1]}, True),
        ({"_target_": "RandAxisFlipd", "keys": "image"}, True),
        ({"_target_": "RandFlipd", "keys": "image", "spatial_axis": 1}, False),
        ({"_target_": "RandFlipd", "keys": "image", "spatial_axis": [1, 2]}, False),
        ({"_target_": "RandZoomd", "keys": "image"}, False),
    ],
)
def test_left_right_flips_are_refused_for_labels_of_one_side(transform, flips):
    for name, lateral in (("left kidney", True), ("kidney", False)):
        labels = {"0": "background", "1": name}
        config = {"labels": labels, "augmentation": {"transforms": [transform]}, "flip_axes": [0]}
        found = flip_findings(config, merge([Source("train.yaml", config)]))
        assert len(found) == (flips and lateral)
        for finding in found:
            assert "`augmentation::transforms::0` flips left to right, but 'left kidney'" in finding.message
            assert finding.file == "train.yaml"
