"""Hypothesis strategies that more than one test module draws from."""

from __future__ import annotations

from hypothesis import strategies as st

from ondine_core.types.values import Item

TEXTS = st.text(max_size=40)
"""Any text of a row, surrogates apart."""

TEMPLATE_LIKE = st.one_of(
    TEXTS,
    st.sampled_from(
        ["{a}", "{b}", "{{a}}", "{", "}", "{{ a }}", "{% if a %}", "{# a #}", "{a!r}", "{{ a.__class__ }}"]
    ),
    st.text(alphabet="{}%#ab|! \n", max_size=20),
)
"""Texts of which many would mean something to a template engine."""

ITEMS = st.lists(
    st.builds(Item, st.binary(min_size=16, max_size=16), TEXTS), max_size=30, unique_by=lambda item: item.key
)
"""What `pack` groups: prompts that differ, and so do their keys."""
