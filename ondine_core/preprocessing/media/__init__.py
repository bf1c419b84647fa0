"""Cells that hold images and documents: what a cell holds, read without trusting it, and what of it is sent."""

from __future__ import annotations

from ondine_core.preprocessing.media.media_options import MediaOptions
from ondine_core.preprocessing.media.media_reader import Gallery, MediaReader

__all__ = ["Gallery", "MediaOptions", "MediaReader"]
