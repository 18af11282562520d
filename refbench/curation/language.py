"""Which expressions are degrading, insulting or sexual, by rules with word lists and contexts.

A plain word filter would drop "butt of the zebra" and "fat donut", because the same words describe objects and insult
people. Therefore a rule can require another word ("ugly" only together with "kid") or exclude one ("ass" unless "horse"
also occurs).
"""

from __future__ import annotations

import itertools
import re
import tomllib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from refbench.errors import DatasetError
from refbench.records import Action

WORDS_FILE = Path(__file__).parent / "words.toml"
_WORD = re.compile(r"[a-z0-9]+")
# Signs written in place of letters to get past a filter. At the end of a word they are punctuation instead.
_DISGUISES = str.maketrans({"@": "a", "$": "s", "!": "i", "0": "o", "1": "i", "3": "e"})
_DISGUISED = re.compile(r"\b[a-z]+[@$!013][@$!013a-z]*[a-z]\b|[@$][a-z]{2,}")
# Letters of other alphabets that look like Latin ones.
_LOOKALIKES = str.maketrans("\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u03bf\u03b1", "aeopcyxioa")
# Words with a letter starred out.
_MASKED = (
    (re.compile(r"\bf[*#]+c?k"), "fuck"), (re.compile(r"\bsh[*#]+t"), "shit"), (re.compile(r"\bb[*#]+tch"), "bitch"),
    (re.compile(r"\bc[*#]+nt"), "cunt"), (re.compile(r"\bn[*#]+gg[*#]+r"), "nigger"),
)  # fmt: skip
_REPEATED = re.compile(r"(.)\1{2,}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why an expression is flagged: the rule, its action ("drop" or "review"), and the word that was found."""

    rule: str
    action: str
    word: str
    says: str


@dataclass(frozen=True)
class Rule:
    """Flags an expression that contains one of `words`, also contains one of `beside` (if given), and contains none of
    `without`.

    A word is ignored if `before` contains the next word. If `near` is set, the word from `beside` must be at most
    `near` words away.
    """

    name: str
    action: str
    says: str
    words: re.Pattern[str]
    beside: re.Pattern[str] | None
    without: re.Pattern[str] | None
    before: re.Pattern[str] | None
    near: int

    def find(self, terms: Sequence[tuple[int, str]]) -> str:
        """The first word of an expression to which this rule applies; "" if there is none.

        `terms` are single words and pairs joined by a hyphen, with their positions.
        """
        single = {place: term for place, term in terms if "-" not in term}
        hits = [
            (place, term)
            for place, term in terms
            if self.words.fullmatch(term) and not (self.before and self.before.fullmatch(single.get(place + 1, "")))
        ]
        if not hits or (self.without and any(self.without.fullmatch(term) for _, term in terms)):
            return ""
        if self.beside is None:
            return hits[0][1]
        company = [place for place, term in terms if self.beside.fullmatch(term)]
        for place, term in hits:
            if any(self.near == 0 or 0 < abs(place - other) <= self.near for other in company):
                return term
        return ""


def flag(expression: str, rules: Sequence[Rule] | None = None) -> list[Verdict]:
    """The verdicts of the rules on an expression, in the order of the rules; at most one per rule."""
    terms = _terms(expression)
    out = []
    for rule in default_rules() if rules is None else rules:
        if word := rule.find(terms):
            out.append(Verdict(rule.name, rule.action, word, rule.says))
    return out


@cache
def default_rules() -> tuple[Rule, ...]:
    return read_rules(WORDS_FILE)


def read_rules(path: Path) -> tuple[Rule, ...]:
    """Read rules from a file in the format of `refbench/curation/words.toml`.

    Raises:
        DatasetError: the file is not valid TOML, or a rule lacks a name, an action, or words.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not a valid word list: {error}") from None
    rows = content.get("rules")
    if not isinstance(rows, list) or not rows:
        raise DatasetError(f"{path} holds no [[rules]]")
    return tuple(_rule(row, content, f"{path}, rule {k + 1}") for k, row in enumerate(rows))


def _rule(row: Mapping[str, Any], content: Mapping[str, Any], where: str) -> Rule:
    missing = [k for k in ("name", "action", "says", "words") if not isinstance(row.get(k), str) or not row[k].split()]
    if missing:
        raise DatasetError(f"{where} needs a text under the key {missing[0]!r}")
    if row["action"] not in (Action.DROP, Action.REVIEW):
        raise DatasetError(f"{where}: the action must be {Action.DROP} or {Action.REVIEW}, got {row['action']!r}")

    def words(*keys: str) -> list[str]:
        out = []
        for key in keys:
            if key.endswith("_words_of"):
                group = row.get(key, "")
                if group and not isinstance(content.get(group), dict):
                    raise DatasetError(f"{where}: the group [{group}] does not exist")
                out += str(content[group].get("words", "")).split() if group else []
            else:
                out += str(row.get(key, "")).split()
        return out

    pattern = _pattern(row["words"].split())
    if pattern is None:
        raise DatasetError(f"{where} has no words")
    return Rule(
        row["name"], row["action"], row["says"], pattern, _pattern(words("with", "with_words_of")),
        _pattern(words("without", "without_words_of")), _pattern(words("before")), int(row.get("near", 0)),
    )  # fmt: skip


def _pattern(words: Sequence[str]) -> re.Pattern[str] | None:
    if not words:
        return None
    return re.compile("|".join(re.escape(w).replace(r"\*", "[a-z]*") for w in words))


def _terms(expression: str) -> list[tuple[int, str]]:
    plain = "".join(c for c in unicodedata.normalize("NFKD", expression.lower()) if not unicodedata.combining(c))
    plain = plain.translate(_LOOKALIKES)
    for pattern, meant in _MASKED:
        plain = pattern.sub(meant, plain)
    # "f.a.g" and "ret-ard" are one word, written in pieces.
    plain = re.sub(r"\b(?:[a-z][.\-_]){2,}[a-z]\b", lambda m: re.sub(r"[^a-z]", "", m[0]), plain)
    whole = [re.sub(r"[^a-z]", "", m) for m in re.findall(r"[a-z]+-[a-z]+", plain)]
    plain = _DISGUISED.sub(lambda m: m[0].translate(_DISGUISES), plain.replace("'", ""))
    words = _WORD.findall(plain)
    # A repeated letter may stand for two letters ("boooobs") or for one ("sluuut").
    drawn_out = [(place, _REPEATED.sub(r"\1", w)) for place, w in enumerate(words) if _REPEATED.search(w)]
    drawn_out += [(len(words) + k, w) for k, w in enumerate(whole)]
    return [*_with_pairs([_REPEATED.sub(r"\1\1", w) for w in words]), *drawn_out]


def _with_pairs(words: Sequence[str]) -> Iterator[tuple[int, str]]:
    yield from enumerate(words)
    for place, (a, b) in enumerate(itertools.pairwise(words)):
        yield place, f"{a}-{b}"
