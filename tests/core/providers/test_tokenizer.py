from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiktoken
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ondine_core.providers.tokenizer import counter

NEW, OLD, OTHER = "openai/gpt-4o-mini", "openai/gpt-4", "mistral/mistral-large-latest"
PROSE = "The parcel arrived a day late, but what was inside is as good as we'd hoped. "
RECORD = '{"order": 20261122, "price": 1499.95, "sku": "AX-7731"}\n'
TEXTS = (PROSE, RECORD, "def f(x):\n    return x + 1\n", "Der Käse schmeckt vorzüglich.", "お誕生日おめでとう", "🤷🏽‍♀️")

SPEC = find_spec("litellm")
assert SPEC is not None
assert SPEC.origin is not None
FILES = Path(SPEC.origin).parent / "litellm_core_utils" / "tokenizers"
O200K_FILE = "fb374d419588a4632f3f557e76b4b70aebbca790"


def exact_count(text: str, model: str) -> int:
    """The tokens of a text by tiktoken, which has the encoding once `counter` has loaded it without a download."""
    counter(model)("")
    return len(tiktoken.get_encoding("o200k_base" if model == NEW else "cl100k_base").encode_ordinary(text))


# -- exact counts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ("", 0, 0),
        ("tiktoken is great!", 6, 6),
        ("antidisestablishmentarianism", 6, 6),
        ("2 + 2 = 4", 7, 7),
        ("お誕生日おめでとう", 9, 8),
    ],
)
def test_openai_counts_equal_the_published_ones(text: str, old: int, new: int) -> None:
    """Those of OpenAI's cookbook: cl100k for GPT-4, o200k for GPT-4o."""
    assert (counter(OLD)(text), counter(NEW)(text)) == (old, new)


def counts(model: str) -> list[int]:
    return list(map(counter(model), TEXTS))


@pytest.mark.parametrize(
    ("model", "like"),
    [
        ("openai/gpt-4o", NEW),
        ("openai/gpt-4o-2024-08-06", NEW),
        ("openai/o3", NEW),
        ("openai/gpt-5-mini", NEW),
        ("openai/ft:gpt-4o-mini-2024-07-18:acme::x", NEW),
        ("azure/gpt-4o", NEW),
        ("groq/openai/gpt-oss-120b", NEW),
        ("ollama/gpt-oss:20b", NEW),
        ("openai/gpt-4-turbo", OLD),
        ("azure/gpt-35-turbo-16k", OLD),
    ],
)
def test_encoding_follows_from_the_model_family(model: str, like: str) -> None:
    """Provider, version and fine-tuning in a model's name do not matter."""
    assert counts(model) == counts(like)
    assert counts(NEW) != counts(OLD)


@pytest.mark.parametrize("model", [NEW, OLD, OTHER])
def test_special_tokens_in_a_row_are_text(model: str) -> None:
    """They are counted by their letters and never refused."""
    assert counter(model)("<|endoftext|>") >= 6
    assert counter(model)("<|im_start|>system<|endofprompt|>") >= 12


def test_half_a_surrogate_pair_is_counted() -> None:
    """Invalid Unicode, as in a truncated export, has a count like any text."""
    assert counter(NEW)("cut \ud83d") >= 2
    assert counter(NEW)("cut \ud83d" * 1000) >= 2000


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [*TEXTS, " ", "  ", "\n\n", "\t", "\x1f", "\x85", "\u3000", "don't", ".\n/", "123456", "<|endoftext|>"]
)


@given(st.lists(WORDS, max_size=60), st.integers(1, 40), st.sampled_from([NEW, OLD]))
@example(["", "def f(x):\n    return x + 1\n", "", "000"], 27, NEW)
def test_long_texts_are_counted_to_the_token(words: list[str], times: int, model: str) -> None:
    """A text with blanks that is split for counting has the count of the whole."""
    text = " ".join(f"{word}." for word in words * times)
    assert counter(model)(text) == exact_count(text, model)


# -- pathological texts --------------------------------------------------------------------------------------------

RUNS = ("a", " ", "\n", "\t ", "^", "漢字仮名交", "🤷🏽‍♀️", "ภาษาไทย", "x7Kq", "7", "\0")


@pytest.mark.parametrize("unit", RUNS)
@pytest.mark.parametrize("model", [NEW, OLD, OTHER])
def test_a_megabyte_of_repeated_text_is_counted_quickly(unit: str, model: str) -> None:
    """Used alone, tiktoken panics at some such texts, and takes minutes for others before 0.13."""
    text = unit * (1_000_000 // len(unit))
    started = time.thread_time()
    assert counter(model)(text) >= 1000
    assert time.thread_time() - started < 5


@pytest.mark.parametrize("unit", RUNS)
def test_text_without_blanks_is_counted_at_most_two_too_high_a_split(unit: str) -> None:
    """Without a good place to split the count is never too low."""
    text = unit * (20_000 // len(unit))
    exact = exact_count(text, NEW)
    assert exact <= counter(NEW)(text) <= exact + 2 * 20


# -- estimates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    ["anthropic/claude-sonnet-5-5", "gemini/gemini-2.5-pro", "mlx/mlx-community/Qwen3-1.7B-4bit", OTHER, "azure/ours"],
)
def test_other_models_are_counted_on_the_safe_side(model: str) -> None:
    """With an unknown tokenizer the count is above OpenAI's, but not so high that nothing fits."""
    for text in (PROSE * 20, RECORD * 20):
        exact = counter(NEW)(text)
        assert exact <= counter(model)(text) <= 2.5 * exact


def test_an_openai_model_that_tiktoken_does_not_know_is_estimated() -> None:
    """A newer model is not counted by an old encoding."""
    assert counter("openai/gpt-99-luna")(PROSE * 20) == -(-counter(NEW)(PROSE * 20) * 135 // 100)


def test_claude_is_not_undercounted() -> None:
    """The only tokenizer that Anthropic published stays below the count, in prose, code and records."""
    claude = Tokenizer.from_file(str(FILES / "anthropic_tokenizer.json"))
    for text in TEXTS:
        assert len(claude.encode(text * 10).ids) <= counter("anthropic/claude-opus-5-5")(text * 10)


@given(st.text("0123456789., ", max_size=200))
def test_digits_are_counted_singly_for_models_that_encode_them_so(figures: str) -> None:
    """Tables of figures take up to three times as many tokens with Qwen, Gemma or Mistral as with GPT."""
    digits = sum(map(str.isdigit, figures))
    for model in ("ollama/qwen3:8b", "llama_cpp/gemma-3-270m", OTHER):
        assert counter(model)(figures) >= digits


# -- offline -------------------------------------------------------------------------------------------------------


def run(code: str, *path: Path, **variables: str) -> list[str]:
    """The output of `code` in a process without network and without a cache."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    mine = {
        name: value for name, value in os.environ.items() if "CACHE_DIR" not in name and "PROXY" not in name.upper()
    }
    root = Path(__file__).parents[3]
    python_path = os.pathsep.join(map(str, [*path, root]))
    environment = {**mine, **nowhere, "PYTHONPATH": python_path, **variables}
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    ).stdout.split()


COUNT = (
    "from ondine_core.providers.tokenizer import counter; "
    f"print(counter({NEW!r})({PROSE!r}), counter({OLD!r})({PROSE!r}))"
)


def test_counting_needs_no_network(tmp_path: Path) -> None:
    """Without network and cache the first count is exact, and litellm is not imported."""
    code = f"{COUNT}; import os, sys; print('litellm' in sys.modules, 'TIKTOKEN_CACHE_DIR' in os.environ)"
    expected = [str(exact_count(PROSE, model)) for model in (NEW, OLD)]
    assert run(code, TMPDIR=str(tmp_path)) == [*expected, "False", "False"]
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_loaded_before_the_first_count() -> None:
    """A run that finds every answer in the store never loads an encoding."""
    naming = f"from ondine_core.providers.tokenizer import counter; counter({NEW!r})"
    assert run(f"{naming}; import sys; print('tiktoken' in sys.modules)") == ["False"]
