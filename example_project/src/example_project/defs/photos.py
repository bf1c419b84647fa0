"""Photos of products and their labels, by a model that accepts images; models in this process do not.

Set ONDINE_MODEL, for instance to openai/gpt-6-luna, and materialize `photo_labels` in the UI.
"""

import os
from pathlib import Path
from typing import Literal

import dagster as dg
import pandas as pd
from pydantic import BaseModel, Field

from ondine_dagster import MediaOptions, Prompt, llm_asset

PHOTOS = Path(__file__).parents[1] / "data" / "photos"
WITHOUT_IMAGES = ("llama_cpp/", "mlx/")


class Photo(BaseModel):
    """The output for a picture."""

    product: Literal["ball", "bowl", "lamp", "mug"] = Field(description="what is in the picture")
    colour: str = Field(description="its colour, in one word")


@dg.asset(group_name="photos")
def product_photos() -> pd.DataFrame:
    """The file names of six pictures of products."""
    return pd.DataFrame({"photo": sorted(file.name for file in PHOTOS.glob("*.png"))})


@llm_asset(
    prompt=Prompt("What is in this picture?\n{photo:image}", media=MediaOptions(root=PHOTOS)),
    output=Photo,
    group_name="photos",
)
def photo_labels(product_photos: pd.DataFrame) -> pd.DataFrame:
    """Product and colour of every picture."""
    return product_photos


@dg.definitions
def photos() -> dg.Definitions:
    """The two assets, if the model accepts images."""
    model = os.environ.get("ONDINE_MODEL", WITHOUT_IMAGES[0])
    return dg.Definitions(assets=[] if model.startswith(WITHOUT_IMAGES) else [product_photos, photo_labels])
