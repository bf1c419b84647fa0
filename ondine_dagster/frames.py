"""Data frames of any kind (pandas, polars, pyarrow) as one kind to work with; loaded when the first one comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ondine_core.errors import ConfigError

if TYPE_CHECKING:
    import narwhals as nw

__all__ = ["check_frame", "frame_of", "is_only_numbered", "names_of"]


def names_of(value: Any) -> tuple[str, ...]:
    """The column names of a data frame, or of frames by partition; none for anything else."""
    import narwhals as nw

    if isinstance(value, Mapping):
        return tuple(dict.fromkeys(name for table in value.values() for name in names_of(table)))
    frame = nw.from_native(value, eager_only=True, pass_through=True)
    return tuple(frame.columns) if isinstance(frame, nw.DataFrame) else ()


def frame_of(table: Any) -> nw.DataFrame[Any]:
    """`table`, a data frame in memory of any kind, as one to work with.

    Raises:
        TypeError: It is none.
    """
    import narwhals as nw  # a tenth of a second, which whoever only loads definitions does not need to spend

    return nw.from_native(table, eager_only=True)


def is_only_numbered(frame: nw.DataFrame[Any]) -> bool:
    """Whether no row has a label of its own: other than in pandas none ever has, there an index may be its key."""
    import narwhals as nw

    if not frame.implementation.is_pandas():
        return True
    import pandas as pd

    index = nw.maybe_get_index(frame)
    return isinstance(index, pd.RangeIndex) and (index.start, index.step, index.name) == (0, 1, None)


def check_frame(value: Any) -> None:
    """Check that `value` can be enriched and joined, before anything is paid.

    Raises:
        ConfigError: It is no frame in memory, or its columns are not named by different texts.
    """
    from narwhals.exceptions import DuplicateError

    try:
        names = list(frame_of(value).columns)
    except TypeError:
        raise ConfigError(
            f"The asset function returned a {type(value).__name__}, which is not a table; "
            "return a pandas, polars or pyarrow frame (collect lazy ones)."
        ) from None
    except DuplicateError as error:
        raise ConfigError(f"The rows have two columns of one name: {error}") from None
    if odd := [name for name in names if not isinstance(name, str)]:
        raise ConfigError(f"The rows have a column named {odd[0]!r}, which is not a text; rename it.")
