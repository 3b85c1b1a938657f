"""Batches read ahead in a thread."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from monai.data import DataLoader

from tomokit.errors import TomokitError
from tomokit.memory import free_memory, lacks_memory


class ReadAhead(DataLoader):
    """A `DataLoader` that prepares the next batch in a thread while the last one is worked on.

    MONAI's `ThreadDataLoader` ends without a word when a file can't be read; here the error comes where it is awaited.
    """

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches in their order.

        Raises:
            TomokitError: when the memory does not suffice for the next one.
        """
        batches = super().__iter__()
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(next, batches, None)
            while (batch := _result(waiting)) is not None:
                waiting = thread.submit(next, batches, None)
                yield batch


def _result(waiting: Future[Any]) -> Any:
    """Return the batch that is awaited, or None behind the last one."""
    try:
        return waiting.result()
    except (RuntimeError, MemoryError) as error:  # MONAI's transforms make every error a RuntimeError
        if not lacks_memory(error):
            raise
        free = f"{free_memory() / 1e9:.2g} GB"
        raise TomokitError(
            f"the free memory ({free}) does not suffice to read and resample the next scan; close other programs, or "
            "raise the limit"
        ) from error
