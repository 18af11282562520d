"""Text of others in Markdown, CSV and XML: it stays text, whatever it contains."""

from __future__ import annotations

import re

# What has a meaning inside a line of GitHub's Markdown. An underscore has one only before a word.
_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_")
# Control characters, the separators that end a line for some programs, and characters that reorder or hide text.
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]+")
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
# A spreadsheet takes a cell that begins with one of these for a formula, some also with their wide forms.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


class Markdown(str):
    """A cell that is Markdown already, for example a number or a link of ours."""

    __slots__ = ()


def plain(text: object) -> str:
    """The text on one line, without control characters and characters that reorder or hide text."""
    return _HIDDEN.sub(" ", str(text).encode("utf-8", "replace").decode("utf-8"))


def markdown(text: object) -> str:
    """The text as Markdown, in a line or in a cell of a table, that shows exactly this text."""
    if isinstance(text, Markdown):
        return text
    escaped = _MARKUP.sub(lambda found: f"\\{found[0]}", plain(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code(text: object) -> Markdown:
    """The text as inline code in Markdown; backticks and bars become apostrophes and slashes."""
    return Markdown(f"`{plain(text).replace('`', chr(39)).replace('|', '/')}`")


def csv_cell(text: str) -> str:
    """The text as a CSV cell that no spreadsheet takes for a formula; numbers stay as they are."""
    if len(text) > 1 and text.startswith(FORMULA_STARTS) and not _is_number(text):
        return f"'{text}"
    return text


def xml_text(text: object) -> str:
    """The text without the characters that no XML document may contain."""
    return _NOT_IN_XML.sub("?", str(text))


def markdown_table(lines: list[list[str]]) -> str:
    """A Markdown table; the first line is its head. Cells are text, unless they are `Markdown`."""
    rows = ["| " + " | ".join(map(markdown, line)) + " |" for line in lines]
    rows.insert(1, "|" + "---|" * len(lines[0]))
    return "\n".join(rows) + "\n"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
