from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from tomokit import bundles
from tomokit.errors import TomokitError
from tomokit.lint import lint_bundle


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder without a checkout, whose `tomokit._bundles` is still empty."""
    folder = tmp_path / "site-packages" / "tomokit" / "_bundles"
    folder.mkdir(parents=True)
    spec = ModuleSpec("tomokit._bundles", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(bundles, "__file__", str(folder.parent / "bundles.py"))
    monkeypatch.setattr(bundles, "find_spec", lambda _: spec)
    return folder


def test_the_installed_bundles_are_found(installed: Path) -> None:
    (installed / "_layers").mkdir()
    assert bundles.bundles_folder() == installed


def test_an_installation_without_bundles(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TomokitError, match="this installation of tomokit has no bundles; install it again"):
        bundles.bundles_folder()
    monkeypatch.setattr(bundles, "find_spec", lambda _: None)
    with pytest.raises(TomokitError, match="has no bundles"):
        bundles.list_bundles()


def test_lint_without_bundles(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("run: []\n")
    (tmp_path / "metadata.json").write_text("{}")
    with pytest.raises(TomokitError, match="has no bundles"):
        lint_bundle([tmp_path / "train.yaml"])
