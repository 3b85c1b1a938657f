"""Bring scans of any common format into the one layout of data sets."""
