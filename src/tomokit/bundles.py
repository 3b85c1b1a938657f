"""The bundles that come with tomokit: where they are."""

from importlib.util import find_spec
from pathlib import Path

from tomokit.errors import TomokitError


def bundles_folder() -> Path:
    """Return the folder of the bundles: the checkout's `bundles/`, or the one installed with the package.

    Raises:
        TomokitError: when the installation has none.
    """
    checkout = Path(__file__).resolve().parents[2] / "bundles"
    if (checkout / "_layers").is_dir():
        return checkout
    installed = find_spec("tomokit._bundles")
    for folder in (installed.submodule_search_locations or []) if installed else []:
        if (Path(folder) / "_layers").is_dir():
            return Path(folder)
    raise TomokitError("this installation of tomokit has no bundles; install it again from a release or a checkout")


def list_bundles() -> dict[str, Path]:
    """Return the folder of each bundle by its name."""
    return {folder.parent.name: folder.parent for folder in sorted(bundles_folder().glob("*/configs"))}


def find_bundle(name: str | Path) -> Path:
    """Return the folder of a bundle given by name or by folder.

    Raises:
        TomokitError: when there is none; it lists the names.
    """
    if (Path(name) / "configs").is_dir():
        return Path(name)
    known = list_bundles()
    if str(name) in known:
        return known[str(name)]
    raise TomokitError(f"no bundle {str(name)!r}: give a folder with configs/, or one of {', '.join(known)}")
