"""Bring scans of any common format into the one layout of data sets."""

from tomokit.importers.importing import ImportReport, describe_import, import_dataset

__all__ = ["ImportReport", "describe_import", "import_dataset"]
