"""Hypothesis strategies that several test modules use."""

from __future__ import annotations

from hypothesis import strategies as st

from ondine_core.types.values import Item

TEXTS = st.text(max_size=40)
"""Any text of a row, without surrogates."""

TEMPLATE_LIKE = st.one_of(
    TEXTS,
    st.sampled_from(
        ["{a}", "{b}", "{{a}}", "{", "}", "{{ a }}", "{% if a %}", "{# a #}", "{a!r}", "{{ a.__class__ }}"]
    ),
    st.text(alphabet="{}%#ab|! \n", max_size=20),
)
"""Texts with many characters that template engines interpret."""

ITEMS = st.lists(
    st.builds(Item, st.binary(min_size=16, max_size=16), TEXTS), max_size=30, unique_by=lambda item: item.key
)
"""Distinct prompts with distinct keys, as `pack` receives them."""
