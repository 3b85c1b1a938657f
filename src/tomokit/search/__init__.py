"""A search for the settings that validate best: learning rate, batch size, optimizer, or any other config id."""

from tomokit.search.searching import search

__all__ = ["search"]
