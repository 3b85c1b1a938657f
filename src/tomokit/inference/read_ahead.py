"""Batches read ahead in a thread."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from monai.data import DataLoader


class ReadAhead(DataLoader):
    """A `DataLoader` that prepares the next batch in a thread while the last one is worked on.

    MONAI's `ThreadDataLoader` ends without a word when a file can't be read; here the error comes where it is awaited.
    """

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches in their order."""
        batches = super().__iter__()
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(next, batches, None)
            while (batch := waiting.result()) is not None:
                waiting = thread.submit(next, batches, None)
                yield batch
