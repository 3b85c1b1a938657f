import contextlib
import json
import os
import resource
import signal

import pytest
import torch

from tomokit.engines.checkpoints import save
from tomokit.errors import TomokitError, raise_problems
from tomokit.files import read_json, replacing, write_json, write_table, write_text


def on_a_small_disk(check) -> bool:
    """Return whether `check` passes in a child process where no file may pass 4 kB, as on a full disk.

    A child, since the limit would hold for the file that this process's output may go to.
    """
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            check()
            status = 0
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(RuntimeError, match="stop"), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stop")
    assert json.loads(path.read_text()) == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_gives_one_clear_error_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write_too_much():
        with pytest.raises(TomokitError, match=r"can't write .*a\.txt: .*--resume true"):
            write_text(path, "x" * 10_000)
        with pytest.raises(TomokitError, match=r"can't write .*w\.pt: .*--resume true"):
            save({"weights": torch.zeros(10_000)}, tmp_path / "w.pt")

    assert on_a_small_disk(write_too_much)
    assert not on_a_small_disk(lambda: (tmp_path / "b.txt").write_text("x" * 10_000))
    assert path.read_text() == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.txt", "b.txt"]


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(TomokitError, match=r"can't write .*runs/a/b\.txt"):
        write_text(tmp_path / "runs" / "a" / "b.txt", "x")


def test_temporary_name_keeps_the_suffixes(tmp_path):
    with replacing(tmp_path / "a.nii.gz") as temporary:
        assert temporary.name.endswith("a.nii.gz") and temporary.parent == tmp_path
        temporary.touch()


def test_table_has_every_column_in_order_of_appearance(tmp_path):
    write_table(tmp_path / "t.csv", [{"case": "a", "dice": 0.5}, {"case": "b", "ml": None}])
    assert (tmp_path / "t.csv").read_text() == "case,dice,ml\na,0.5,\nb,,\n"


def test_json_refuses_nan_and_reading_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    with pytest.raises(TomokitError, match="does not exist"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(TomokitError, match="is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_problems_are_shown_together_and_counted():
    raise_problems("never", [])
    with pytest.raises(TomokitError, match=r"(?s)bad\n  - p0\n.*- p19\n  … and 5 more"):
        raise_problems("bad", [f"p{i}" for i in range(25)])


@pytest.mark.parametrize("text", ["[" * 100_000, "{", '{"a": ' + "9" * 5000 + "}"])
def test_json_that_python_gives_up_on_is_one_error(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(TomokitError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")
