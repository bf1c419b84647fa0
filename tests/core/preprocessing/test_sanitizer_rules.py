"""The sanitizer's rules: precision and recall on the labelled corpus, and linear time."""

from __future__ import annotations

import json
import random
import re
import time
from pathlib import Path

import hypothesis
import pytest

from ondine_core import ConfigError
from ondine_core.preprocessing.sanitizer import RULE_NAMES, Sanitizer
from ondine_core.preprocessing.sanitizer.check_digits import IBAN_LENGTHS
from ondine_core.preprocessing.sanitizer.finding import find
from ondine_core.preprocessing.sanitizer.rules import FILE_SUFFIXES
from tests.support.growth import grows_no_faster_than_its_text
from tests.support.pii import corpus, scores

GUIDE = (Path(__file__).parents[3] / "docs" / "privacy.md").read_text(encoding="utf-8")
RULES = Sanitizer().chosen


def texts(text: str) -> list[tuple[str, str]]:
    """Rule and datum of each finding in `text`."""
    return [(span.name, text[span.start : span.end]) for span in find(text, RULES)]


# -- figures -------------------------------------------------------------------------------------------------------


def test_the_corpus_is_large_enough() -> None:
    """Some hundred sentences, many without any datum, and at least ten data for each rule."""
    sentences = corpus()
    labels = [name for sentence in sentences for name, _, _ in sentence.labels]
    assert len(sentences) >= 300
    assert sum(not sentence.labels for sentence in sentences) >= 100
    assert min(labels.count(name) for name in RULE_NAMES) >= 10


def test_precision_and_recall() -> None:
    """Both are at least 0.9 for each rule; misses are marked in the corpus."""
    for name, score in scores(corpus()).items():
        assert score.precision >= 0.9, name
        assert score.recall >= 0.9, name


def test_the_guide_has_the_figures_of_the_corpus() -> None:
    """The guide's table equals the measurement."""
    rows = [
        f"| `{name}` | {score.found + score.missed} | {score.precision:.2f} | {score.recall:.2f} |"
        for name, score in scores(corpus()).items()
    ]
    assert re.findall(r"^\| `[A-Z_]+` \| \d+ .*$", GUIDE, re.MULTILINE) == rows


# -- findings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("4111 1111 1111 1111 123 12/27", [("CREDIT_CARD", "4111 1111 1111 1111")]),
        ("12345 4111 1111 1111 1111", [("CREDIT_CARD", "4111 1111 1111 1111")]),
        ("pay DE89 3704 0044 0532 0130 00 NOW PLEASE", [("IBAN", "DE89 3704 0044 0532 0130 00")]),
        ("https://bob:pa55word@example.com/x", [("API_KEY", "bob:pa55word@example.com")]),
        ("O'Brien@example.com's", [("EMAIL", "O'Brien@example.com")]),
        ("a@b.com,c@d.com;e@f.com", [("EMAIL", "a@b.com"), ("EMAIL", "c@d.com"), ("EMAIL", "e@f.com")]),
        ("::ffff:10.0.0.1.", [("IP", "::ffff:10.0.0.1")]),
        ("x" * 300 + "@example.com", [("EMAIL", "x" * 300 + "@example.com")]),
        ("jose\u0301.li@example.com", [("EMAIL", "jose\u0301.li@example.com")]),
        ("请联系 山田@例え.jp。谢谢", [("EMAIL", "山田@例え.jp")]),
        ("अजय@डाटा.भारत।", [("EMAIL", "अजय@डाटा.भारत")]),
        ("כתבו: דוגמה@דוגמה.קום", [("EMAIL", "דוגמה@דוגמה.קום")]),
        ("请发邮件到user@example.com谢谢", [("EMAIL", "user@example.com")]),
        ("user@example.com으로 보내 주세요", [("EMAIL", "user@example.com")]),
        ("发到user@例子.中国", [("EMAIL", "user@例子.中国")]),
        ("写在山田@mail.vuex.com里@App.vue", [("EMAIL", "写在山田@mail.vuex.com")]),
        ("写在@json.com", [("EMAIL", "写在@json.com")]),
        ("感谢@张三。你好。价格12@15.5元。コメント@1.2倍", []),
        ("DE89 3704 0044\r\n0532 0130 00\r\nBank", [("IBAN", "DE89 3704 0044\r\n0532 0130 00")]),
        ("0612345678", [("PHONE", "0612345678")]),
        ("07700900123", [("PHONE", "07700900123")]),
        (r"from CORP\robert@example.com", [("EMAIL", "robert@example.com")]),
        (r"one line\n4111 1111 1111 1111", [("CREDIT_CARD", "4111 1111 1111 1111")]),
        (r'["DE89 3704 0044\r\n0532 0130 00\r\nBank"]', [("IBAN", r"DE89 3704 0044\r\n0532 0130 00")]),
        (r'["DE89\t3704\t0044\t0532\t0130\t00"]', [("IBAN", r"DE89\t3704\t0044\t0532\t0130\t00")]),
        (r'["https:\/\/bob:pa55word@example.com\/x"]', [("API_KEY", "bob:pa55word@example.com")]),
        (r'["{\"password\": \"hunter2hunter2\", \"n\": 1}"]', [("API_KEY", "hunter2hunter2")]),
    ],
)
def test_a_datum_is_found_whole_and_alone(text: str, found: list[tuple[str, str]]) -> None:
    """Its surroundings are not part of it, and of overlapping rules the first names the finding."""
    assert texts(text) == found


def test_no_ending_of_a_file_is_a_top_level_domain() -> None:
    """An address that ends in one would not be found."""
    domains = Path(hypothesis.__file__).with_name("vendor") / "tlds-alpha-by-domain.txt"
    assert set(domains.read_text(encoding="ascii").lower().split()).isdisjoint(FILE_SUFFIXES)


DATA = {
    "EMAIL": "jörg@müller.de",
    "CREDIT_CARD": "4111 1111 1111 1111",
    "IBAN": "DE89 3704 0044 0532 0130 00",
    "PHONE": "+44\u00a020\u00a07946\u00a00958",
    "IP": "192.168.1.1",
    "SSN": "219-09-9999",
}


@pytest.mark.parametrize("before", ["\n", "\t", "\\", "<", "é: "])
@pytest.mark.parametrize("name", DATA)
def test_data_in_json_are_found_whole_and_alone(name: str, before: str) -> None:
    """Also behind an escape, whose letter is not part of them, and with escapes in them."""
    written = json.dumps({"note": f"{before}{DATA[name]}\n"})
    datum = json.dumps(DATA[name])[1:-1]
    assert texts(written) == [(name, datum)]
    assert texts(written.replace("<", "\\u003c")) == [(name, datum)]


def test_check_digits_are_verified() -> None:
    """A card or account number with a wrong digit, or two swapped digits, is not found."""
    rng = random.Random(1)
    for number in ("4111111111111111", "DE89370400440532013000", "GB82WEST12345698765432"):
        assert len(texts(number)) == 1
        for _ in range(50):
            place = rng.randrange(4, len(number))
            if number[place].isdigit():
                wrong = number[:place] + str((int(number[place]) + rng.randrange(1, 10)) % 10) + number[place + 1 :]
                assert not [name for name, _ in texts(wrong) if name in ("CREDIT_CARD", "IBAN")], wrong


def test_account_numbers_of_every_country() -> None:
    """For each country in the registry numbers of the right length and check digits are found, no others."""
    for country, length in IBAN_LENGTHS.items():
        account = ("0123456789" * 4)[: length - 4]
        rest = int("".join(str(int(one, 36)) for one in f"{account}{country}00")) % 97
        number = f"{country}{98 - rest:02}{account}"
        assert texts(f"to {number}.") == [("IBAN", number)]
        assert ("IBAN", f"{number}0") not in texts(f"to {number}0.")


# -- time ----------------------------------------------------------------------------------------------------------

_NEAR_MATCHES = (
    *(
        "a@",
        "a@b.",
        "a@b.c",
        "@a.",
        "a'",
        "_'a",
        "a%40",
        "1 ",
        "1-",
        "1.",
        "1:",
        "::1 ",
        "1:1:1 ",
        "a:",
        "DE89 ",
        "DE89",
    ),
    *(
        "4111 1111 1111 1112 ",
        "4111111111111112 ",
        "411111111111111 ",
        "1234 ",
        "0123 ",
        "123-45-",
        "123-45-6789-",
        "+1 ",
    ),
    *("+1", "00 1", "00", "01 ", "01/", "(0", "(555) ", "555-123-", "tel ", "call me at ", "phone 1", "ssn ", "ssn 1"),
    *("password=", "password: ", "key key ", "bearer ", "Bearer abc1", "sk-a", "eyJaaaaaaaa.", "://a:", "://", "25."),
    *(
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN ",
        "1.2.3.4.",
        "255.255.255.",
        "fe80::",
        "xox",
        "ghp_",
        "SG.a",
        "((",
        "x1 ",
    ),
    *("social security ", "a.b.c.d@", "<EMAIL_1>", "123-45-6789.", "a@b.com_", "4111111111111111,", "10.0.0.1.."),
)


@pytest.mark.parametrize(
    "units",
    [
        [chr(code) for code in range(128)],
        ["\u200b", "é", "漢", "\u0660", "😀", "\ud800", "\u0301", "\uff0d", "\u00a0", "\u2011"],
        list(_NEAR_MATCHES),
    ],
    ids=["ASCII", "beyond", "near matches"],
)
def test_sanitizing_takes_linear_time(units: list[str]) -> None:
    """Twice as much of any repeated text takes about twice as long."""
    for unit in units:
        grows_no_faster_than_its_text(lambda text: find(text, RULES), unit)


def test_time_measurement_detects_quadratic_time() -> None:
    """What takes quadratic time does not pass for linear."""
    with pytest.raises(AssertionError, match="times as long"):
        grows_no_faster_than_its_text(lambda text: re.search(r"\w+@", text), "a")


def test_random_near_matches_take_linear_time() -> None:
    """Parts of matches in any order."""
    rng = random.Random(7)
    pieces = [*_NEAR_MATCHES, *"0123456789abcdefABCDEF@.:-+()/'_ %=\n"]
    for _ in range(20):
        unit = "".join(rng.choice(pieces) for _ in range(rng.randrange(2, 12)))
        grows_no_faster_than_its_text(lambda text: find(text, RULES), unit)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+$",
        r"(\w+\s?)*!",
        r"\w+@corp\.com",
        r"([a-z0-9]+)*-",
        r"(?:-|--)*x",
        r".*C-\d{6}",
        r"(x+x+)+y",
        r"\d+\d+\d+z",
    ],
)
def test_user_pattern_of_quadratic_time_is_refused(pattern: str) -> None:
    """When it is declared, with the fix in the error."""
    started = time.thread_time()
    with pytest.raises(ConfigError, match=r"The pattern of 'MINE' stalls: .* Bound its repeats"):
        Sanitizer(patterns={"MINE": pattern})
    assert time.thread_time() - started < 10


@pytest.mark.parametrize(
    "pattern",
    [
        r"C-\d{6}",
        r"\b\w{1,64}@corp\.com\b",
        r"(?:[a-z]{1,20}\.){1,5}corp",
        r"(?i)\bname: (?P<value>[^\n,]{1,60})",
        r"\bEMP\d+\b",
    ],
)
def test_user_pattern_of_linear_time_is_accepted(pattern: str) -> None:
    """Bounded repeats, and unbounded ones with nothing after them."""
    assert find("nothing here", Sanitizer(patterns={"MINE": pattern}).chosen) == []
