"""The wheel alone: no Dagster project, no data frames."""

import importlib.util

from ondine_core import Options, ScriptedModel, enrich_sync
from ondine_core.providers.pricing import find_price
from ondine_core.providers.tokenizer import counter

for absent in ("litellm", "pandas", "polars", "pyarrow", "pytest"):
    assert importlib.util.find_spec(absent) is None, absent

assert find_price("openai/gpt-4o-mini") is not None
assert counter("openai/gpt-4o-mini")("tiktoken is great!") == 6

model = ScriptedModel({"love": {"mood": "good"}, "": {"mood": "bad"}})
for calls in (2, 2):  # the second time nothing is asked
    report = enrich_sync(
        [{"review": "I love it"}, {"review": "It broke"}, {"review": "I love it"}],
        prompt="Which mood?\nReview: {review}",
        output={"mood": {"type": "string", "enum": ["good", "bad"]}},
        model=model,
        options=Options(store="answers.db"),
    )
    assert report.column("mood") == ["good", "bad", "good"]
    assert len(model.calls) == calls
