"""Models by short names: those of Ondine, models on your own servers, and a team's own presets in a YAML file."""

from ondine_core.presets.catalog import PRESETS, openai_compatible, preset
from ondine_core.presets.files import load_presets

__all__ = ["PRESETS", "load_presets", "openai_compatible", "preset"]
