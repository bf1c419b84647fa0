"""Models by short names: those that come with Ondine, a server of one's own, and a team's own in a YAML file."""

from ondine_core.presets.catalog import PRESETS, openai_compatible, preset
from ondine_core.presets.files import load_presets

__all__ = ["PRESETS", "load_presets", "openai_compatible", "preset"]
