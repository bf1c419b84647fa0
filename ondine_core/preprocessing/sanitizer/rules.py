"""The rules: patterns of personal data and secrets, as data.

A pattern is matched against folded text (see `folding`), so it is mostly ASCII. Each finds its matches in time
proportional to the text: repeats are bounded, or possessive and started at one place of a run only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ondine_core.preprocessing.sanitizer.check_digits import (
    Check,
    card_length,
    iban_length,
    ipv6_length,
    phone_length,
    secret_length,
)


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """The form of a kind of datum; several rules may have the same name.

    Args:
        name: The name in marks, as in `[EMAIL]` and `<EMAIL_1>`.
        pattern: A regular expression. If it has a group `value`, that is the datum, and the rest is its context.
        check: Returns how many characters of a match are the datum, for conditions that a pattern cannot express.
        digits: The fewest digits of a number in a text with a match, for a quick test; up to three blanks and marks may
            stand between two digits.
        hints: Texts in lower case of which one is in each text with a match, for a quick test; empty for no test.
        folded: Whether the pattern is matched against the folded text, and not against the original one.
        needs: A pattern that each text with a match also has; such texts are not ASCII. Empty for no test.
    """

    name: str
    pattern: str
    check: Check | None = None
    digits: int = 0
    hints: tuple[str, ...] = ()
    folded: bool = True
    needs: str = ""


_KEYS = {
    "sk-": "sk-[0-9A-Za-z_-]{16,}+",
    "k_live_": "[spr]k_live_[0-9A-Za-z]{16,}+",
    "k_test_": "[spr]k_test_[0-9A-Za-z]{16,}+",
    "whsec_": "whsec_[0-9A-Za-z]{16,}+",
    "gsk_": "gsk_[0-9A-Za-z]{16,}+",
    "hf_": "hf_[0-9A-Za-z]{16,}+",
    "npm_": "npm_[0-9A-Za-z]{16,}+",
    "gh": "gh[oprsu]_[0-9A-Za-z]{16,}+",
    "github_pat_": "github_pat_[0-9A-Za-z_]{16,}+",
    "glpat-": "glpat-[0-9A-Za-z_-]{16,}+",
    "dapi": "dapi[0-9a-f]{32}",
    "pypi-": "pypi-[0-9A-Za-z_-]{16,}+",
    "xox": "xox[abeoprs]-[0-9A-Za-z-]{10,}+",
    "akia": "AKIA[0-9A-Z]{16}(?![0-9A-Za-z])",
    "asia": "ASIA[0-9A-Z]{16}(?![0-9A-Za-z])",
    "aiza": "AIza[0-9A-Za-z_-]{30,}+",
    "ya29.": "ya29[.][0-9A-Za-z_-]{16,}+",
    "sg.": "SG[.][0-9A-Za-z_-]{16,}+[.][0-9A-Za-z_-]{16,}+",
    "eyj": "eyJ[0-9A-Za-z_-]{8,}+[.][0-9A-Za-z_-]{8,}+(?:[.][0-9A-Za-z_-]*+)?",
}
"""The beginnings of keys and tokens in lower case, and their patterns, as their issuers document them."""
_BEFORE_A_VALUE = (
    "(?:api|access|auth|secret|private)[ _-]?(?:key|token)|secret[ _-]?access[ _-]?key|client[ _-]?secret|secret|token|"
    "password|passwd|passphrase|pwd"
)
# Letters of Latin, Greek and Cyrillic script; in scripts without blanks between words, a match would not end. Marks are
# letters as well, since some systems write an accent behind its letter.
_LETTERS = "A-Za-z\u00c0-\u024f\u0300-\u052f"
_IN_NAME = rf"{_LETTERS}0-9_.+-"
# Those of Armenian, Hebrew, Arabic, Indian scripts, Thai, Georgian, Ethiopic, Khmer, Japanese, Chinese and Korean.
_OTHER_LETTERS = (
    "\u0531-\u0556\u0561-\u0587\u0591-\u05ea\u0620-\u065f\u066e-\u06d3\u06d5-\u06ff\u0900-\u0963\u0966-\u0dff\u0e01-\u0e4e"
    "\u0e80-\u0ecd\u1000-\u1049\u10a0-\u10fa\u1200-\u135a\u1780-\u17d3\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003134f"
)
_ANY_NAME = f"{_OTHER_LETTERS}{_IN_NAME}"
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"
_EXTENSION = r"(?:[ ,]{0,2}(?:x|ext[.]?|extension|#)[ .:]{0,2}[0-9]{1,6}(?![0-9]))?"
# Not inside a longer word or number, nor a later part of one.
_START = "(?<![0-9A-Za-z])(?<![0-9A-Za-z]-)"
_END = "(?![0-9A-Za-z])(?!-[0-9A-Za-z])"
_PHONE_WORDS = (
    "(?:tele)?phone|tele?|telefon[eo]?|teléfono|téléphone|mobile?|m[oó]vil|mob|cell|celular|handy|fax|whatsapp|sms|call|"
    "ring|hotline|тел|телефон|τηλ|手机|电话|電話|携帯|전화|هاتف"
)
_PHONE_HINTS = (
    *("phone", "tel", "tél", "mob", "mov", "móv", "cel", "handy", "fax", "whatsapp", "sms", "call", "ring", "hotl"),
    *("тел", "τηλ", "手机", "电话", "電話", "携帯", "전화", "هاتف"),
)
_PHONE_LINKS = "[ :.=#-]|number|num|nr|no|me|us|him|her|is|at|on|under|my|our|ist|es|est|al|ao|le"

FILE_SUFFIXES = ("vue", "svelte", "js", "jsx", "ts", "tsx", "css", "scss", "html", "json")
"""Endings of file names that are not top-level domains."""
_NO_FILE = rf"(?!(?:{'|'.join(FILE_SUFFIXES)})(?![{_LETTERS}0-9-]))"

RULES: tuple[Rule, ...] = (
    Rule("API_KEY", f"(?<![0-9A-Za-z])(?:{'|'.join(_KEYS.values())})", hints=tuple(_KEYS)),
    Rule(
        "API_KEY",
        "(?i)(?<![0-9a-z])(?:bearer|authorization: ?basic) {1,2}(?P<value>[0-9a-z._~+/-]{16,}+={0,2})",
        secret_length,
        hints=("bearer", "authorization"),
    ),
    Rule(
        "API_KEY",
        rf"""(?i)(?<![a-z])(?:{_BEFORE_A_VALUE})["']?\s{{0,3}}[:=]\s{{0,3}}["']?(?P<value>[^\s"',;<>\[\]]{{8,}}+)""",
        hints=("key", "secret", "token", "pass", "pwd"),
    ),
    Rule(
        "API_KEY",
        "-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[0-9A-Za-z+/=\\s\\\\:,]*+(?:-----END [A-Z ]{0,20}PRIVATE KEY-----)?",
        hints=("private key-----",),
    ),
    Rule("API_KEY", r"://(?P<value>[^\s/@:<>\[\]]{1,64}:[^\s/@<>\[\]]{1,128})@", hints=("://",)),
    Rule("IBAN", r"(?<![0-9A-Za-z])[A-Za-z]{2}[0-9]{2}(?:[\s-]{0,2}[0-9A-Za-z]){11,31}", iban_length, digits=4),
    Rule(
        "CREDIT_CARD",
        r"(?<![0-9A-Za-z])(?<!^[0-9][.])(?<![^0-9][0-9][.])(?=[2-6])"
        "(?:[0-9]{14,19}|[0-9]{4}(?:[ .-]{1,2}[0-9]{4}){3}(?:[ .-]{1,2}[0-9]{3})?|"
        "[0-9]{4}[ .-]{1,2}[0-9]{6}[ .-]{1,2}[0-9]{4,5}|[0-9]{8}[ -][0-9]{8})(?![0-9A-Za-z])",
        card_length,
        digits=14,
    ),
    Rule(
        "EMAIL",
        rf"(?<![{_IN_NAME}])(?<![{_IN_NAME}]')[{_IN_NAME}]++(?:'[{_IN_NAME}]++)*+(?:@|%40)(?![0-9]x[.])"
        rf"(?:[{_LETTERS}0-9-]{{1,63}}+[.]){{1,30}}(?:xn--[0-9a-z-]{{2,59}}|[{_LETTERS}]{{2,24}})",
        hints=("@", "%40"),
    ),
    # In scripts without blanks between words, the words before an address are taken as part of it. A label has letters
    # of one kind, so `a@b.com` ends before a word of another script. A file name behind an `@` is not an address.
    Rule(
        "EMAIL",
        rf"(?:(?<![{_ANY_NAME}])[{_ANY_NAME}]++(?<=[{_OTHER_LETTERS}])|(?<![{_IN_NAME}])[{_IN_NAME}]++)@"
        rf"(?:(?:[{_LETTERS}0-9-]{{1,63}}+|[{_OTHER_LETTERS}0-9-]{{1,63}}+)[.]){{1,30}}{_NO_FILE}"
        rf"(?:xn--[0-9a-z-]{{2,59}}|[{_LETTERS}]{{2,24}}|[{_OTHER_LETTERS}]{{2,24}})",
        hints=("@",),
        needs=f"@(?:(?<=[{_OTHER_LETTERS}]@)|[{_LETTERS}0-9.-]{{0,253}}+[{_OTHER_LETTERS}])",
    ),
    Rule(
        "SSN",
        rf"{_START}(?!000|666)[0-9]{{3}}(?P<between>[ -])(?!00)[0-9]{{2}}(?P=between)(?!0000)[0-9]{{4}}"
        rf"{_END}",
        digits=9,
    ),
    Rule(
        "SSN",
        "(?i)(?<![a-z])(?:ssn|social security(?: number| no[.]?)?)[^0-9]{0,12}(?P<value>[0-9]{9})(?![0-9])",
        digits=9,
        hints=("ssn", "social"),
    ),
    Rule(
        "IP",
        rf"(?<![0-9A-Za-z])(?<![0-9][.])(?<!ersion )(?<![A-Za-z]-)(?:{_OCTET}[.]){{3}}{_OCTET}(?![0-9A-Za-z])"
        "(?![.][0-9])",
        digits=4,
    ),
    Rule(
        "IP",
        "(?<![0-9A-Za-z:.])(?:[0-9A-Fa-f]{1,4}:|::)[0-9A-Fa-f:.]{1,43}+(?![0-9A-Za-z])",
        ipv6_length,
        digits=1,
        hints=(":",),
    ),
    # With a country code: +1 and ten digits, or any other with up to fifteen digits (ITU-T E.164).
    Rule(
        "PHONE",
        r"(?<![0-9A-Za-z+])[+](?:1[ .-]{0,2}\(?[2-9][0-9]{2}\)?[ .-]{0,2}[0-9]{3}[ .-]{0,2}[0-9]{4}"
        rf"|[ (]{{0,2}}[1-9](?:[ ./()-]{{0,3}}[0-9]){{6,14}})(?![0-9]){_EXTENSION}",
        digits=7,
        hints=("+",),
    ),
    Rule(
        "PHONE",
        r"(?<![0-9A-Za-z+])(?<![0-9A-Za-z]-)00[ -]?[1-9](?:[ ./()-]{0,3}[0-9]){8,13}(?![0-9])",
        digits=11,
        hints=("00",),
    ),
    # North America: three, three and four digits.
    Rule(
        "PHONE",
        rf"{_START}(?:1[ .-]{{1,2}})?(?:\([2-9][0-9]{{2}}\)[ .-]{{0,2}}[0-9]{{3}}[ .-]{{0,2}}|"
        rf"[2-9][0-9]{{2}}[ ./-]{{1,2}}[0-9]{{3}}[ .-]{{1,2}})[0-9]{{4}}{_END}{_EXTENSION}",
        digits=10,
    ),
    # Elsewhere a national number begins with one zero, followed by at least one digit and a gap.
    Rule(
        "PHONE",
        rf"{_START}(?<![0-9]/)\(?0[1-9][0-9]{{0,4}}\)?[ ./-]{{1,3}}[0-9](?:[ ./-]{{0,2}}[0-9]){{4,9}}{_END}(?!/[0-9])",
        partial(phone_length, min_digits=9, max_digits=12),
        digits=9,
    ),
    Rule(
        "PHONE",
        rf"(?i)(?<![a-z])(?:{_PHONE_WORDS})(?![a-z])(?:{_PHONE_LINKS}){{0,8}}"
        r"(?P<value>[+(]{0,2}[0-9](?:[ ./()-]{0,3}[0-9]){6,14})(?![0-9])",
        partial(phone_length, min_digits=7, max_digits=15),
        digits=7,
        hints=_PHONE_HINTS,
    ),
    # A cell of a column of phone numbers, with the `.0` that pandas adds if another cell of the column is missing.
    Rule("PHONE", r"\A\s{0,9}(?P<value>(?:1?[2-9][0-9]{9}|0[1-9][0-9]{8,9})(?:[.]0)?)\s{0,9}\Z", digits=10),
)
"""In order of precedence: if matches overlap, the first rule names the datum."""
