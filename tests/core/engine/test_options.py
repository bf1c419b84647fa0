from pathlib import Path
from typing import Any

import pytest

from ondine_core import ConfigError, Options, Policy
from ondine_core.store import open_store


@pytest.mark.parametrize("store", [None, 5, b"answers.db", ["answers.db"]], ids=repr)
def test_invalid_store_is_refused(store: Any) -> None:
    """`Options` raises an error with the value and what is valid, before any run."""
    with pytest.raises(ConfigError, match="give a path, a postgresql:// URL, ':memory:' or an open store") as caught:
        Options(store=store)
    assert f"store={store!r}" in str(caught.value)


def test_store_is_a_path_or_an_open_store(tmp_path: Path) -> None:
    """A text, a path and an open store are accepted."""
    with open_store(":memory:") as store:
        assert Options(store=store).store is store
    assert Options(store=tmp_path / "answers.db").store == tmp_path / "answers.db"
    assert Options(store="answers.db").store == "answers.db"


@pytest.mark.parametrize("durability", ["disk", "", None])
def test_invalid_durability_is_refused(durability: Any) -> None:
    """The message lists the valid values."""
    with pytest.raises(ConfigError, match="must be 'process' or 'power'"):
        Options(durability=durability)


@pytest.mark.parametrize("switch", ["keep_replies", "tier_fallback", "cancel_on_terminate"])
def test_a_switch_is_no_text(switch: str) -> None:
    """Such as one from a variable: "false" would turn it on."""
    with pytest.raises(ConfigError, match=f"{switch}='false' must be True or False"):
        Policy(**{switch: "false"})  # type: ignore[arg-type]
