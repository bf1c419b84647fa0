"""The labelled corpus of personal data and secrets, and the scores of the rules on it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ondine_core.preprocessing.sanitizer import RULE_NAMES, Sanitizer
from ondine_core.preprocessing.sanitizer.finding import find

_CORPUS = Path(__file__).with_name("pii_corpus.txt")
_LABEL = re.compile(r"⟦([A-Z_]+):(.*?)⟧", re.DOTALL)


@dataclass(frozen=True)
class Sentence:
    """A text and the data to be found in it: rule, start and end."""

    text: str
    labels: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Score:
    """A rule's numbers of true positives, false negatives and false positives."""

    found: int
    missed: int
    wrong: int

    @property
    def precision(self) -> float:
        """The share of findings that are correct."""
        return self.found / (self.found + self.wrong)

    @property
    def recall(self) -> float:
        """The share of data that are found."""
        return self.found / (self.found + self.missed)


def corpus() -> list[Sentence]:
    """All sentences."""
    lines = _CORPUS.read_text(encoding="utf-8").splitlines()
    return [_sentence(line) for line in lines if line and not line.startswith("# ")]


def _sentence(line: str) -> Sentence:
    line = re.sub(r"\\u([0-9a-f]{4})", lambda code: chr(int(code[1], 16)), line.replace("¦", ""))
    text, labels, at = "", [], 0
    for label in _LABEL.finditer(line):
        text += line[at : label.start()]
        labels.append((label[1], len(text), len(text) + len(label[2])))
        text += label[2]
        at = label.end()
    return Sentence(text + line[at:], tuple(labels))


def scores(sentences: list[Sentence]) -> dict[str, Score]:
    """Each rule's score.

    A label counts as found if a span of its rule covers all of it. A span counts as wrong if it overlaps no label of
    its rule.
    """
    counts: Counter[tuple[str, str]] = Counter()
    rules = Sanitizer().chosen
    for sentence in sentences:
        spans = find(sentence.text, rules)
        for name, start, end in sentence.labels:
            whole = any(span.name == name and span.start <= start and end <= span.end for span in spans)
            counts[name, "found" if whole else "missed"] += 1
        for span in spans:
            right = any(
                name == span.name and start < span.end and span.start < end for name, start, end in sentence.labels
            )
            counts[span.name, "wrong"] += not right
    return {name: Score(counts[name, "found"], counts[name, "missed"], counts[name, "wrong"]) for name in RULE_NAMES}
