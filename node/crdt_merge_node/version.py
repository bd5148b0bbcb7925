"""The release, read once from the installed package."""

from importlib.metadata import version

VERSION = version("crdt-merge-node")
"""SemVer. The wire version is separate and negotiated."""
