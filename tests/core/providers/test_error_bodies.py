"""What a user reads of an error response, in whatever form it comes, and what is withheld."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ondine_core import Call, ProviderError, TransientError
from ondine_core.providers.error_body import read_error
from ondine_core.providers.http_errors import Address, Response, no_answer_error, response_error
from ondine_core.providers.masking import mask
from ondine_core.types.values import Message
from tests.support.asking import ask, options
from tests.support.provider import Provider, matching, status

NOON = 1_767_225_600.0  # 2026-01-01, midnight UTC
WORDS = "the kettle is on strike"


def failure(code: int, body: Any, headers: dict[str, str] | None = None, call: Call | None = None) -> ProviderError:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    asked = call or Call((Message("user", "Repeat: hello"),))
    judge = no_answer_error if code == 200 else response_error
    return judge(Response(code, headers or {}, content, NOON), asked, ["k-123"], Address("host", 5))


SHAPES = {
    "an object (OpenAI)": {"error": {"message": WORDS, "type": "t", "param": None, "code": None}},
    "a text (Ollama, TGI)": {"error": WORDS},
    "a message (Mistral, Kong, AWS)": {"message": WORDS},
    "a detail (FastAPI)": {"detail": WORDS},
    "a list of details (FastAPI)": {"detail": [{"type": "x", "loc": ["body", "seed"], "msg": WORDS, "input": 1}]},
    "details in a message (Mistral)": {"object": "error", "message": {"detail": [{"loc": ["body"], "msg": WORDS}]}},
    "a list of errors (Cloudflare)": {"success": False, "errors": [{"code": 7000, "message": WORDS}], "result": None},
    "errors as texts": {"errors": [WORDS]},
    "an array (Gemini)": [{"error": {"code": 400, "message": WORDS, "status": "INVALID_ARGUMENT"}}],
    "a top level (vLLM)": {"object": "error", "message": WORDS, "type": "BadRequestError", "code": 400},
    "an object in a type (Anthropic)": {"type": "error", "error": {"type": "invalid_request_error", "message": WORDS}},
    "problem+json": {"type": "about:blank", "title": "Bad Request", "status": 400, "detail": WORDS},
    "raw JSON in metadata (OpenRouter)": {
        "error": {
            "message": "Provider returned error",
            "metadata": {"raw": orjson.dumps({"error": {"message": WORDS}}).decode()},
        }
    },
    "JSON in a message (LiteLLM)": {
        "error": {"message": f'litellm.BadRequestError: OpenAIException - {{"error": {{"message": "{WORDS}"}}}}'}
    },
    "a printed object in a message": {"error": {"message": f"Error code: 400 - {{'error': {{'message': '{WORDS}'}}}}"}},
    "a message of another name (Portkey)": {"html-message": WORDS},
    "a message in camel case (AWS Lambda)": {"errorMessage": WORDS, "errorType": "Runtime.ExitError"},
    "an error_msg (Baidu)": {"error_code": 18, "error_msg": WORDS},
    "a fault (Apigee)": {"fault": {"faultstring": WORDS, "detail": {"errorcode": "steps.quota.QuotaViolation"}}},
    "a text alone": WORDS,
    "a page": f"<!doctype html><html><head><title>{WORDS}</title></head></html>".encode(),
    "a page with a heading": f"<html><body><h1>{WORDS}</h1><p>nginx</p></body></html>".encode(),
    "XML (AWS)": f"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>{WORDS}</Message></Error>".encode(),
    "plain text": WORDS.encode(),
    "a mark before it": b"\xef\xbb\xbf" + orjson.dumps({"error": {"message": WORDS}}),
    "broken UTF-8": b'{"error": {"message": "' + WORDS.encode() + b' \xff\xfe"}}',
    "cut JSON": b'{"error": {"message": "' + WORDS.encode(),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("code", [400, 401, 429, 500])
def test_explanation_is_found_in_every_error_format(shape: str, code: int) -> None:
    """Providers put it in different fields; the user reads it in any case."""
    assert WORDS in str(failure(code, SHAPES[shape]))


@pytest.mark.parametrize("body", [b"", b"null", b"{}", b"[]", b'""', b'{"error":null}', b"\xff\xfe", b"<html></html>"])
def test_empty_error_body_is_described_by_its_status(body: bytes) -> None:
    """The error is still a sentence."""
    assert str(failure(400, body)).strip("� ").startswith("The provider replied 400")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["error", "message", "detail", "code", "type", "loc", "retry_after", "retryDelay", "raw", "x"]
            )
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(JSON.map(lambda value: orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)) | st.binary(max_size=300))
def test_any_error_body_gives_a_short_error(body: bytes) -> None:
    """For any body the failure is one of our errors, short, and names the status."""
    for code in (200, 400, 403, 429, 502):
        error = failure(code, body)
        assert isinstance(error, ProviderError)
        assert len(str(error)) < 700


def test_huge_error_body_is_read_in_part() -> None:
    """Of megabytes only the beginning is read, and of many errors only the first."""
    error = failure(400, {"errors": [{"message": f"error {number}"} for number in range(100_000)]})
    assert len(str(error)) < 700
    nested = b'{"error":' * 5_000 + b"1" + b"}" * 5_000
    assert "400" in str(failure(400, nested))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"error": {"message": "slow down", "code": "429"}}, "limited"),
        ({"error": {"message": "Provider returned error", "code": 502}}, "broken"),
        ({"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}, None),
        ({"error": {"message": "Input was flagged", "code": "content_filter"}}, None),
    ],
)
def test_error_with_status_200_is_classified_by_its_body(body: Any, kind: str | None) -> None:
    """Its code, even as text, or its message decides."""
    error = failure(200, body)
    assert getattr(error, "kind", None) == kind
    assert not getattr(error, "cost_unknown", False)


@pytest.mark.parametrize(
    ("body", "is_quoted"),
    [({"error": WORDS}, True), (f"<html><title>{WORDS}</title></html>".encode(), True), ({"message": WORDS}, False)],
)
def test_explanation_of_a_reply_without_an_answer_is_quoted(body: Any, is_quoted: bool) -> None:
    """If it is one, and not a model's answer in another form."""
    assert (WORDS in str(failure(200, body))) is is_quoted


# -- waits ---------------------------------------------------------------------------------------------------------

WAITS: list[tuple[Any, dict[str, str], float | None]] = [
    ({"error": {"message": "Rate limit reached. Please try again in 1m26.4s."}}, {}, 86.4),
    ({"error": {"message": "Please try again in 20ms."}}, {}, 0.02),
    ({"error": {"message": "Please try again in 6m0s. Visit the page."}}, {}, 360),
    ({"error": {"code": "429", "message": "Please retry after 10 seconds."}}, {}, 10),
    ({"error": {"code": "429", "message": "Rate limit is exceeded. Try again in 2 seconds."}}, {}, 2),
    ({"error": {"message": "Resets at 2026-01-01T00:01:00Z"}}, {}, 60),
    ({"error": {"message": "retry after 5 minutes and 3 seconds"}}, {}, 303),
    (
        {"error": {"details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.07s"}]}},
        {},
        34.07,
    ),
    ([{"error": {"details": [{"retryDelay": {"seconds": 3, "nanos": 500_000_000}}]}}], {}, 3.5),
    ({"error": {"message": "busy", "retry_after": 12}}, {}, 12),
    ({"error": {"message": "busy", "retry_after": "PT30S"}}, {}, 30),
    ({"detail": {"retry_after_ms": 1500}}, {}, 1.5),
    ({"error": {"message": "busy", "retry_after": "2026-01-01T00:00:05+00:00"}}, {}, 5),
    ({"error": {"metadata": {"headers": {"X-RateLimit-Reset": f"{(NOON + 8) * 1000:.0f}"}}}}, {}, 8),
    (b"slow down, retry after 4 s", {}, 4),
    ({"error": {"message": "Please try again in 9s."}}, {"retry-after": "3"}, 3),
    ({"error": {"message": "busy"}}, {"x-ratelimit-reset": f"{NOON + 9:.0f}"}, 9),
    ({"error": {"message": "busy", "retry_after": -5}}, {}, None),
    ({"error": {"message": "Please try again in -5 s."}}, {}, None),
    ({"error": {"message": "Please try again in 99999999 days."}}, {}, None),
    ({"error": {"message": "Please try again later."}}, {}, None),
    ({"error": {"message": "You may retry 3 times."}}, {}, None),
    ({"error": {"message": "busy", "retry_after": True}}, {}, None),
]


@pytest.mark.parametrize(("body", "headers", "expected"), WAITS, ids=lambda value: str(value)[:60])
def test_wait_named_in_a_body_is_read_like_retry_after(
    body: Any, headers: dict[str, str], expected: float | None
) -> None:
    """From fields or sentences, as a duration or a date; a header has precedence, implausible values are ignored."""
    error = failure(429, body, headers)
    assert isinstance(error, TransientError)
    assert error.retry_after_s == (None if expected is None else pytest.approx(expected))


def test_run_waits_as_long_as_a_body_asks() -> None:
    """The retry comes after the wait that only the body names."""
    body = {"error": {"message": "Rate limit reached. Please try again in 250ms.", "code": "rate_limit_exceeded"}}
    seen: list[float] = []

    def once(asked):  # noqa: ANN001, ANN202
        seen.append(asked.arrived_at)
        return status(429, body)(asked) if len(seen) == 1 else None

    with Provider(fault=once) as provider:
        report = ask(provider, {"text": ["a"]}, options(max_concurrency=1))
    assert report.errors() == [None]
    assert seen[1] - seen[0] >= 0.25


# -- text of rows --------------------------------------------------------------------------------------------------

TEMPLATE = "Extract the tags and the topic of this product review. Reply with JSON.\nReview: {text}"
ROW = "My name is Ann Li and the kettle of Café Zürich burnt my hand"


@pytest.mark.parametrize(
    "message",
    [
        f"Invalid content: {ROW}",
        "Invalid content: 'Ann Li'",
        "The name Ann Li and the kettle are not allowed",
        "The text MY NAME IS ANN LI was flagged",
        "Extra input 'burnt my hand' at position 7",
        "Near `Café Zürich`: no",
    ],
)
def test_row_text_is_masked_in_messages(message: str) -> None:
    """What a message repeats of a row is masked, and only that."""
    call = Call((Message("user", TEMPLATE.replace("{text}", ROW)),), fixed=TEMPLATE)
    shown = str(failure(400, {"error": {"message": message}}, call=call))
    for part in ("Ann", "kettle", "burnt", "Zürich", "ANN"):
        assert part not in shown
    assert "…" in shown


@pytest.mark.parametrize(
    "message",
    [
        "Invalid schema: In context=('properties', 'tags'), 'uniqueItems' is not permitted",
        "The word 'JSON' must be in the product review",
        "The maximum context length is exceeded",
        "The topic of this product review is missing",
    ],
)
def test_template_words_are_not_masked(message: str) -> None:
    """An explanation of the set-up may share words with the template."""
    call = Call((Message("user", TEMPLATE.replace("{text}", "great kettle, maximum context")),), fixed=TEMPLATE)
    assert message in str(failure(400, {"error": {"message": message}}, call=call))


def test_fields_that_echo_the_request_are_not_read() -> None:
    """A row about money is not taken for an exhausted account, wherever the response echoes it."""
    row = "insufficient_quota: my credit balance is too low"
    body = {"error": {"message": "Input was flagged", "metadata": {"flagged_input": row}, "input": row}}
    assert "insufficient" not in str(failure(403, body))
    assert read_error(orjson.dumps(body), NOON).message == "Input was flagged"


RARE = st.text("qxzjv 0123456789üß", min_size=8, max_size=40).filter(lambda text: len(" ".join(text.split())) >= 8)


@given(st.sampled_from(["", "Invalid input: ", "The field '"]), RARE, st.sampled_from(["", "' is not known", " at 7"]))
def test_row_text_is_masked_anywhere_in_a_body(before: str, row: str, after: str) -> None:
    """For any row and any surrounding text."""
    call = Call((Message("user", f"{TEMPLATE} {row}"),), fixed=TEMPLATE)
    masked = mask(f"{before}{row}{after}", call, [])
    assert " ".join(row.split()) not in masked
    assert "…" in masked


def test_a_run_shows_words_of_its_template_and_none_of_its_rows() -> None:
    """In the report of a whole run, for single rows and batches."""
    message = "The product review 'great kettle 7' has tags that the topic lacks"
    table = {"text": [f"great kettle {number}" for number in range(12)]}
    prompt = "Say the topic and tags of this product review: {text}"
    for size in (1, 4):
        with Provider(fault=matching("kettle 7", status(400, {"error": {"message": message}}))) as provider:
            errors = ask(provider, table, options(batch_size=size, max_concurrency=1), prompt=prompt).errors()
        (shown,) = [error for error in errors if error and "product review" in error]
        assert "The product review '…' has tags that the topic lacks" in shown
