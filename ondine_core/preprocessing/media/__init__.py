"""Reads the images and documents in cells, without trusting them, and prepares them for sending."""

from __future__ import annotations

from ondine_core.preprocessing.media.media_options import MediaOptions
from ondine_core.preprocessing.media.media_reader import Gallery, MediaReader

__all__ = ["Gallery", "MediaOptions", "MediaReader"]
