"""Damaged files of every format, 36 of those that `make fuzz` reads."""

from fuzzing import FORMATS, fuzz


def test_damaged_files_give_an_error_or_a_clean_read(tmp_path):
    outcomes = {path.parent.name: outcome for path, outcome in fuzz(tmp_path, 3 * len(FORMATS))}
    assert len(outcomes) == 36
    assert [f"{name}: {outcome}" for name, outcome in outcomes.items() if outcome.startswith("FAILED")] == []
    assert sum(outcome.startswith("error:") for outcome in outcomes.values()) > 10
