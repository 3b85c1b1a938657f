"""From a finished run to one zip that others load: configs, weights, metadata, a page about it."""

from tomokit.release.making import Release, print_release, release_run

__all__ = ["Release", "print_release", "release_run"]
