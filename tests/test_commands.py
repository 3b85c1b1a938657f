"""The commands people type: `tomokit …` and `make …`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tomokit import phantoms
from tomokit.bundles import bundles_folder, find_bundle, list_bundles
from tomokit.cli import app, main
from tomokit.errors import TomokitError

ROOT = Path(__file__).parents[1]
TARGETS = "install demo plan search crossval test lint types train evaluate infer tensorboard".split()
TARGETS += "check-bundles bench release dist clean report explain".split()


def invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_bundles_are_listed_with_their_paths():
    lines = invoke("bundles").output.splitlines()
    names = (
        "anomaly classification enhancement fusion longitudinal pretraining registration segmentation sequence".split()
    )
    assert [line.split()[0] for line in lines] == list(list_bundles()) == names
    assert all(Path(line.split(maxsplit=1)[1]).is_dir() for line in lines)


def test_a_bundle_is_found_by_name_and_by_folder():
    assert find_bundle("segmentation") == bundles_folder() / "segmentation"
    assert find_bundle(bundles_folder() / "segmentation") == bundles_folder() / "segmentation"
    with pytest.raises(TomokitError, match=r"no bundle 'segmentatoin'.*longitudinal, pretraining, registration, seg"):
        find_bundle("segmentatoin")


def test_data_lists_the_phantoms_and_says_where_sets_are(tmp_path, monkeypatch):
    monkeypatch.setenv("TOMOKIT_DATA", str(tmp_path))
    output = invoke("data", "list").output
    assert "phantom-ct " in output and "made in seconds" in output


def test_a_problem_is_one_text_and_a_status(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TOMOKIT_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["tomokit", "data", "get", "nothing"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("tomokit: the catalogue has no data set 'nothing'")


def test_plan_writes_a_bundle_and_tells_the_next_command(tmp_path):
    phantoms.make_segmentation_set(tmp_path / "set", cases=5, test_cases=1, size=24, progress=False)
    done = invoke("plan", str(tmp_path / "set"), "--out", str(tmp_path / "plan"), "--memory", "2")
    assert done.exit_code == 0 and f"next: make train BUNDLE={tmp_path / 'plan'}" in done.output
    assert (tmp_path / "plan" / "configs" / "train.yaml").is_file()


def test_search_needs_an_end_and_a_bundle():
    with pytest.raises(TomokitError, match="give --trials, --minutes, or both"):
        app(["search", "segmentation"], standalone_mode=False)
    with pytest.raises(TomokitError, match="no bundle 'segmentatoin'"):
        app(["search", "segmentatoin", "--trials", "1"], standalone_mode=False)


def test_lint_takes_names_and_files_or_all(tmp_path, monkeypatch):
    assert invoke("lint", "fusion").exit_code == 0
    linted = []
    with monkeypatch.context() as patch:  # that none has a finding is for test_bundles
        patch.setattr("tomokit.lint.lint_main", lambda folder, *_: linted.append(folder.name) or 0)
        assert invoke("lint").exit_code == 0
    assert sorted(linted) == sorted(list_bundles())
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("initialize: []\nrun: []\nepochz: 3\n")
    result = invoke("lint", str(wrong))
    assert result.exit_code == 1 and "epochz" in result.output


def test_lint_explains_an_override_whose_parent_monai_does_not_find():
    train = str(bundles_folder() / "segmentation" / "configs" / "train.yaml")
    result = invoke("lint", "--quiet", train, "--train#trainr#max_epochs", "3")
    assert result.exit_code == 1 and "`train` has no key `trainr`; did you mean `trainer`?" in result.output
    result = invoke("lint", "--quiet", train, "--train#trainer#max_epochs", "3")
    assert result.exit_code == 0 and result.output == ""


def test_report_of_an_absent_run_says_what_makes_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tomokit", "report", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert "make evaluate" in capsys.readouterr().err


def make(*arguments: str) -> str:
    done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def test_make_alone_prints_every_target_with_a_line():
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    told = {line.split()[1]: line.split(maxsplit=2)[2] for line in done.stdout.splitlines()}
    assert set(TARGETS) <= set(told) and all(told.values())


def test_make_train_puts_the_layers_in_order():
    output = make("train", "BUNDLE=segmentation", "NETWORK=vnet", "DATA=hippocampus", "LAYERS=smoke", "RUN=x")
    files = "train.yaml','{0}/data/hippocampus.yaml','{0}/networks/vnet.yaml','bundles/_layers/smoke.yaml'"
    assert files.format("bundles/segmentation/configs") in output
    assert "--run_dir runs/x" in output and "--dataset_dir hippocampus" in output


def test_make_train_takes_the_layers_of_the_bundle_that_a_plan_is_made_of(tmp_path):
    (tmp_path / "configs" / "modes").mkdir(parents=True)
    (tmp_path / "fingerprint.json").write_text(json.dumps({"dataset": "x", "task": "segmentation"}, indent=2))
    (tmp_path / "configs" / "modes" / "regions.yaml").touch()
    layers = "LAYERS=modes/regions modes/ignore_label smoke none"
    output = make("train", f"BUNDLE={tmp_path}", "NETWORK=vnet", "DATA=hippocampus", layers)
    files = [f"{tmp_path}/configs/train.yaml", "bundles/segmentation/configs/networks/vnet.yaml"]
    files += [f"{tmp_path}/configs/modes/regions.yaml", "bundles/segmentation/configs/modes/ignore_label.yaml"]
    files += ["bundles/_layers/smoke.yaml", "none"]  # not data/hippocampus.yaml, whose numbers would replace the plan's
    assert ",".join(f"'{file}'" for file in files) in output
    (tmp_path / "fingerprint.json").unlink()
    assert f"'{tmp_path}/configs/networks/vnet.yaml'" in make("train", f"BUNDLE={tmp_path}", "NETWORK=vnet")


def test_make_crossval_trains_the_last_fold_first_with_all_arguments():
    given = """--seed 3 --labels "{'0': 'a b'}\""""
    output = make("crossval", "BUNDLE=classification", "LAYERS=smoke", "RUN=x", "FOLDS=2", f"ARGS={given}")
    lines = [line for line in output.splitlines() if "monai.bundle" in line and "||" in line]
    runs = ["--run_dir runs/x/fold_1", "runs/x/fold_1/configs/", "--run_dir runs/x/fold_0", "runs/x/fold_0/configs/"]
    assert len(lines) == 6 and all(run in line for run, line in zip(runs, lines, strict=False))
    for line, fold in zip(lines[::2], (1, 0), strict=False):
        assert f"{given} --fold {fold} " in line and "_layers/smoke.yaml" in line
    assert not any("--seed" in line or "--fold " in line for line in (lines[1], *lines[3:]))
    for line, name in zip(lines[4:], ("crossval", "ensemble"), strict=True):
        files = f"'bundles/classification/configs/train.yaml','bundles/_layers/{name}.yaml'"
        assert files in line and "--runs \"['runs/x/fold_0','runs/x/fold_1']\" --run_dir runs/x" in line


def test_make_evaluate_and_infer_follow_the_run():
    assert "['runs/x/configs/train.yaml','bundles/segmentation/configs/evaluate.yaml']" in make("evaluate", "RUN=x")
    assert "--input scans/a.nii.gz" in make("infer", "RUN=x", "INPUT=scans/a.nii.gz")


def test_make_report_takes_several_runs_or_a_new_scan():
    assert "tomokit report runs/one runs/two" in make("report", "RUN=one two")
    assert "tomokit report --case scan.nii.gz --run runs/one" in make("report", "RUN=one", "CASE=scan.nii.gz")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give the folders of runs, or `--case SCAN --run RUN`"),
        (["runs/a", "--run", "runs/b"], "give the folders of runs"),
        (["--case", "scan.nii.gz"], "`--case SCAN` needs `--run RUN`, and no other run"),
        (["runs/a", "--case", "scan.nii.gz", "--run", "runs/b"], "and no other run"),
    ],
)
def test_report_needs_runs_or_a_scan_with_its_run(monkeypatch, capsys, arguments, told):
    monkeypatch.setattr(sys, "argv", ["tomokit", "report", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert told in capsys.readouterr().err
