"""Checks of numbers that a pattern cannot express: check digits, and lengths by issuer or country.

A check takes the text of a match and returns how many of its first characters are the value; 0 if it is not valid.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from ipaddress import AddressValueError, IPv6Address
from typing import TypeAlias

Check: TypeAlias = Callable[[str], int]

# -- payment cards -------------------------------------------------------------------------------------------------

_ISSUERS: tuple[tuple[str, frozenset[int]], ...] = (
    ("4", frozenset({16, 19})),  # Visa; its cards of 13 digits are gone
    ("5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)", frozenset({16})),  # Mastercard
    ("3[47]", frozenset({15})),  # American Express
    ("3(?:0[0-5]|[689])", frozenset({14, 16})),  # Diners Club
    ("35(?:2[89]|[3-8])", frozenset({16, 19})),  # JCB
    ("6", frozenset({16, 17, 18, 19})),  # Discover, UnionPay, RuPay, Maestro
    ("5[06-8]", frozenset({16, 17, 18, 19})),  # Maestro, Elo
    ("220[0-4]", frozenset({16, 17, 18, 19})),  # Mir
)
"""First digits (as a pattern), and how many there are in all; see ISO/IEC 7812 and the networks' own tables."""
_DOUBLED = bytes.maketrans(b"0123456789", b"0246813579")
_ZERO = ord("0")


def card_length(match: str) -> int:
    """The length of a payment card number, by issuer and Luhn's check digit, without a code or date behind it."""
    digits, best = "", 0
    for group in re.finditer("[0-9]+", match):
        digits += group[0]
        if _is_card(digits):
            best = group.end()
    return best


def _is_card(digits: str) -> bool:
    known = any(len(digits) in lengths and re.match(start, digits) for start, lengths in _ISSUERS)
    if not known:
        return False
    written = digits.encode()[::-1]
    return (sum(written[::2]) + sum(written[1::2].translate(_DOUBLED)) - _ZERO * len(written)) % 10 == 0


# -- bank accounts -------------------------------------------------------------------------------------------------

_IBANS = """
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24
    FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32
    LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24
    RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30
"""
IBAN_LENGTHS: Mapping[str, int] = {entry[:2]: int(entry[2:]) for entry in _IBANS.split()}
"""Characters of an account number by country, from SWIFT's registry for ISO 13616."""


def iban_length(match: str) -> int:
    """The length of an account number, by country and check digits (ISO 7064, mod 97), without words behind it."""
    length = IBAN_LENGTHS.get(match[:2].upper(), 0)
    places = [place for place, character in enumerate(match) if character.isalnum()]
    if not length or len(places) < length:
        return 0
    end = places[length - 1] + 1
    if end < len(match) and match[end].isalnum():
        return 0
    written = "".join(character for character in match[:end] if character.isalnum())
    number = int("".join(str(int(character, 36)) for character in written[4:] + written[:4]))
    return end if number % 97 == 1 else 0


# -- addresses, phones and secrets ---------------------------------------------------------------------------------

_GROUPS = 7
"""Colons in an IPv6 address that is written in full."""


def ipv6_length(match: str) -> int:
    """The length of an IPv6 address, without punctuation behind it; it has a digit, unlike `::` in code."""
    for written in (match.rstrip("."), match.rstrip(".:")):
        colons = written.count(":")
        if ("::" in written or colons == _GROUPS or "." in written) and not written.isalpha():
            try:
                IPv6Address(written)
            except AddressValueError:
                continue
            return len(written) if any(map(str.isdigit, written)) else 0
    return 0


_DATE = re.compile(
    r"[( ]*(?:[0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}|[0-9]{1,2}[-/.][0-9]{1,2}[-/.](?:[0-9]{4}|[0-9]{2}))"
    "(?![-/.]?[0-9])"
)


def phone_length(match: str, min_digits: int, max_digits: int) -> int:
    """The length of a match with `min_digits` to `max_digits` digits that does not begin with a date."""
    digits = sum(map(match.count, "0123456789"))
    return len(match) if min_digits <= digits <= max_digits and not _DATE.match(match) else 0


def secret_length(match: str) -> int:
    """The length of a match with both letters and digits, unlike ordinary words."""
    return len(match) if any(map(str.isdigit, match)) and any(map(str.isalpha, match)) else 0
