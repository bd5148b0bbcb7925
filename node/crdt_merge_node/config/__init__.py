"""Configuration: a TOML file, then the environment, then flags, read into one typed model."""

from .loading import load_config
from .model import Config, Origin

__all__ = ["Config", "Origin", "load_config"]
