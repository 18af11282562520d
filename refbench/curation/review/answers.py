"""The answers of reviewers. Every answer is appended to an SQLite file next to the proposals.

Nothing is overwritten: an answer that is taken back is only marked. An answer is acknowledged after it is written to
disk.
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from refbench.curation.agreement import boundary_ious
from refbench.curation.ledger import EXPRESSION, MASK
from refbench.errors import MaskError, RunError
from refbench.masks.mask import Mask
from refbench.records import Action, Cause, Decision
from refbench.storage.files import check_is_file

REVIEW_FILE = "review.sqlite"
ACTIONS = {MASK: (Action.KEEP, Action.CHANGE, Action.DROP), EXPRESSION: (Action.KEEP, Action.DROP)}
STAGE = "review"
# Two drawn masks are one opinion where their boundary IoU is at least this.
SAME_MASK = 0.9
BUSY_SECONDS = 10.0
_LONGEST_NAME, _LONGEST_NOTE, _LONGEST_KEY = 60, 2000, 200
# A revision: the number of the last answer, and the time of the last retraction.
_REVISION = re.compile(r"(\d{1,18}) ([0-9T:.+Z-]{0,40})")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    item TEXT NOT NULL,
    item_id TEXT NOT NULL,
    reviewer TEXT NOT NULL,
    action TEXT NOT NULL,
    height INTEGER,
    width INTEGER,
    counts TEXT NOT NULL DEFAULT '',
    origin TEXT NOT NULL DEFAULT '',
    note TEXT NOT NULL DEFAULT '',
    time TEXT NOT NULL,
    undone TEXT NOT NULL DEFAULT '',
    seconds REAL
);
CREATE INDEX IF NOT EXISTS answers_of_item ON answers (item_id, reviewer);
"""
# Longer than this, the reviewer was probably not looking at the page.
MOST_SECONDS = 600.0


class AnswerError(RunError):
    """The answer is invalid, so sending it again does not help."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of one person about one item.

    `key` is created by the page, so that an answer that is sent twice counts once. For the action "change", `mask` is
    the new mask and `origin` states how it was made: by a refiner, "brush", "polygon", "click", or another program
    ("cvat", "label-studio"). `seconds` is how long the reviewer looked at the item, None if this is unknown.
    """

    key: str
    item: str
    item_id: str
    reviewer: str
    action: str
    time: str
    mask: Mask | None = None
    origin: str = ""
    note: str = ""
    seconds: float | None = None


class Reviews:
    """The answers of reviewers in a curation folder. Each call opens the file, so processes and threads can share it.

    Args:
        new: whether a missing or empty file is the beginning of a review; otherwise, it is an error.

    Raises:
        RunError: the file is not an SQLite database, or another program has locked it for longer than `busy_seconds`.
    """

    def __init__(self, path: Path, busy_seconds: float = BUSY_SECONDS, *, new: bool = True) -> None:
        self.path = path
        self._busy_seconds = busy_seconds
        with self._connected() as connection:
            tables = {str(row[0]) for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "answers" not in tables and (tables or not new):
                raise RunError(
                    f"{self.path} contains no review answers; if nobody has answered, remove the file, otherwise "
                    "restore it from a backup"
                )
            connection.executescript(_SCHEMA)
            columns = [row[1] for row in connection.execute("PRAGMA table_info(answers)")]
            if "seconds" not in columns:
                # A file of a version before 0.1. Another process may add the column at the same moment.
                with suppress(sqlite3.OperationalError):
                    connection.execute("ALTER TABLE answers ADD COLUMN seconds REAL")

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        if self.path.exists():
            check_is_file(self.path, RunError)
        try:
            connection = sqlite3.connect(self.path, timeout=self._busy_seconds, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                # Without FULL a power cut may lose what was acknowledged.
                connection.execute("PRAGMA synchronous=FULL")
                yield connection
            finally:
                connection.close()
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "busy" in str(error):
                raise RunError(
                    f"another program has locked {self.path} for more than {self._busy_seconds:g} s; close that "
                    "program and try again. No answer was lost"
                ) from error
            raise RunError(
                f"{self.path} cannot be used: {error}. Check the disk and the file permissions, then try again"
            ) from error
        except (sqlite3.DatabaseError, UnicodeError, OverflowError) as error:
            # SQLite quotes damaged names in its messages, which need not be text.
            raise RunError(
                f"{self.path} is not a database of review answers ({error}); restore the file from a backup, or "
                "move it to another folder"
            ) from error

    def add(self, answer: Answer) -> bool:
        """Append an answer; False if an answer with the same key and content already exists.

        Raises:
            AnswerError: the answer is invalid (an unknown action, a change without a mask, no reviewer), or its key
                belongs to another answer.
            RunError: see `Reviews`; in this case, nothing is written.
        """
        return self.add_all([answer]) == 1

    def add_all(self, answers: Sequence[Answer]) -> int:
        """Append all answers, or none if one of them is invalid; returns the number of new answers."""
        for answer in answers:
            check_answer(answer)
        marks = ",".join("?" * len(_COLUMNS.split(",")))
        new = 0
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            for answer in answers:
                values = _values(answer)
                done = connection.execute(f"INSERT OR IGNORE INTO answers ({_COLUMNS}) VALUES ({marks})", values)
                new += done.rowcount
                if done.rowcount == 0:
                    row = connection.execute(f"SELECT {_COLUMNS} FROM answers WHERE key = ?", (answer.key,)).fetchone()
                    # `time` is when the answer arrived, so a repeated answer has a different time.
                    if row[:-1] != values[:-1]:
                        connection.execute("ROLLBACK")
                        raise AnswerError(f"the key {answer.key} belongs to another answer")
            connection.execute("COMMIT")
        return new

    def undo(self, reviewer: str, time: str) -> Answer | None:
        """Take back the last answer of the reviewer that has not been taken back; returns it, or None if there is
        none.
        """
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            row = connection.execute(
                f"SELECT id, {_COLUMNS} FROM answers WHERE undone = '' AND reviewer = ? ORDER BY id DESC LIMIT 1",
                (reviewer,),
            ).fetchone()
            if row is not None:
                connection.execute("UPDATE answers SET undone = ? WHERE id = ?", (time, row[0]))
            connection.execute("COMMIT")
        return None if row is None else _answer(row[1:], self.path)

    def standing(self, items: Sequence[str] | None = None) -> dict[str, list[Answer]]:
        """The last answer of each reviewer that was not taken back, by item, in the order of time.

        Args:
            items: only the answers about these items; all if None.
        """
        wanted, values = "", tuple(items or ())
        if items is not None:
            wanted = f" AND item_id IN ({','.join('?' * len(values))})"
        with self._connected() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM answers WHERE undone = ''{wanted} ORDER BY id", values
            ).fetchall()
        latest: dict[tuple[str, str], Answer] = {}
        for row in rows:
            answer = _answer(row, self.path)
            person = answer.item_id, same_name(answer.reviewer)
            latest.pop(person, None)
            latest[person] = answer
        out: dict[str, list[Answer]] = {}
        for answer in latest.values():
            out.setdefault(answer.item_id, []).append(answer)
        return out

    def changes(self, since: str = "") -> tuple[list[str], str]:
        """The items whose answers have changed since a revision, and the present revision.

        A revision is a text that an earlier call returned; "" is the beginning. Retractions are tracked with a
        resolution of one second, so an item may be listed although it has not changed.
        """
        last, undone = parse_revision(since)
        with self._connected() as connection:
            rows = connection.execute(
                "SELECT DISTINCT item_id FROM answers WHERE id > ? OR (undone != '' AND undone >= ?)",
                (last, undone),
            ).fetchall()
            newest = connection.execute(
                "SELECT COALESCE(MAX(id), 0), COALESCE(MAX(undone), '') FROM answers"
            ).fetchone()
        return [str(row[0]) for row in rows], f"{newest[0]} {newest[1]}"

    def all_answers(self) -> list[Answer]:
        """All answers that were not taken back, in chronological order, including earlier answers of the same
        reviewer.
        """
        with self._connected() as connection:
            rows = connection.execute(f"SELECT {_COLUMNS} FROM answers WHERE undone = '' ORDER BY id").fetchall()
        return [_answer(row, self.path) for row in rows]


_COLUMNS = "key, item, item_id, reviewer, action, height, width, counts, origin, note, seconds, time"


def _answer(row: Sequence[object], path: Path) -> Answer:
    key, item, item_id, reviewer, action, height, width, counts, origin, note, seconds, time = row
    try:
        mask = Mask(int(str(height)), int(str(width)), str(counts).encode("ascii")) if counts else None
    except (MaskError, ValueError) as error:
        raise RunError(f"{path}: the answer {key} about {item_id} contains an invalid mask ({error})") from None
    answer = Answer(
        str(key), str(item), str(item_id), str(reviewer), str(action), str(time), mask, str(origin), str(note),
        float(seconds) if isinstance(seconds, (int, float)) else None,
    )  # fmt: skip
    try:
        # Another program may have written the file.
        check_answer(answer)
    except AnswerError as error:
        raise RunError(f"{path}: the answer {str(key)[:80]!r} was not written by refbench ({error})") from None
    return answer


def parse_revision(text: str) -> tuple[int, str]:
    """The number of the last answer and the time of the last retraction; the beginning if the text is no revision."""
    found = _REVISION.fullmatch(text)
    return (int(found[1]), found[2]) if found else (0, "")


def same_name(reviewer: str) -> str:
    """A normalised name, so that "Anna " and "anna" are the same person."""
    return " ".join(reviewer.split()).casefold()


def _values(answer: Answer) -> tuple[object, ...]:
    mask = answer.mask
    size = (mask.height, mask.width, mask.counts.decode("ascii")) if mask else (None, None, "")
    head = (answer.key, answer.item, answer.item_id, answer.reviewer, answer.action)
    seconds = None if answer.seconds is None else round(answer.seconds, 3)
    return (*head, *size, answer.origin, answer.note, seconds, answer.time)


def check_answer(answer: Answer) -> None:
    """Raise AnswerError if the answer is invalid."""
    texts = (answer.key, answer.item_id, answer.reviewer, answer.origin, answer.note)
    if any("\ud800" <= c <= "\udfff" or c == "\0" for text in texts for c in text):
        raise AnswerError("the text contains an invalid Unicode character; type it again")
    if answer.item not in ACTIONS or answer.action not in ACTIONS[answer.item]:
        allowed = ", ".join(ACTIONS.get(answer.item, ()))
        raise AnswerError(f"the answer for a {answer.item} must be one of {allowed}, got {answer.action!r}")
    if not answer.reviewer.strip() or len(answer.reviewer) > _LONGEST_NAME:
        raise AnswerError(f"the name of the reviewer must have 1 to {_LONGEST_NAME} characters")
    if not 0 < len(answer.key) <= _LONGEST_KEY or len(answer.note) > _LONGEST_NOTE:
        raise AnswerError(
            f"an answer needs a key of at most {_LONGEST_KEY} characters, and its note must have at most "
            f"{_LONGEST_NOTE} characters"
        )
    if (answer.action == Action.CHANGE) != (answer.mask is not None):
        raise AnswerError("an answer must have a mask if its action is `change`, and must not have a mask otherwise")
    if answer.seconds is not None and not 0 <= answer.seconds <= MOST_SECONDS:
        raise AnswerError(f"seconds must be between 0 and {MOST_SECONDS:g}, got {answer.seconds}")
    if answer.mask is not None and answer.mask.area == 0:
        raise AnswerError("the new mask is empty; use the action `drop` instead")


def settle(answers: Sequence[Answer], reviewers: int) -> Decision | None:
    """The decision that follows from the answers about one item; None if they are too few or disagree.

    An opinion wins if at least `reviewers` people share it and they are more than half of all people who answered.
    Nearly equal masks count as the same opinion; the mask that matches most of the others is used.
    """
    if len(answers) < reviewers:
        return None
    labels = opinions(answers)
    best, votes = Counter(labels).most_common(1)[0]
    if votes < reviewers or 2 * votes <= len(answers):
        return None
    agreed = [a for a, o in zip(answers, labels, strict=True) if o == best]
    first = next((a for a in agreed if a.mask is not None and best.endswith(a.mask.counts.decode("ascii"))), agreed[0])
    notes = "; ".join(a.note for a in agreed if a.note)
    told = first.origin if first.action == Action.CHANGE else first.action
    return Decision(
        first.item_id, Action(first.action), STAGE, f"{told}: {notes}" if notes else told, mask=first.mask,
        refiner=first.origin if first.action == Action.CHANGE else "",
        reviewer=", ".join(a.reviewer for a in agreed), time=max(a.time for a in agreed), cause=Cause.PERSON,
    )  # fmt: skip


def opinions(answers: Sequence[Answer]) -> list[str]:
    """A label for each answer; answers with the same opinion have the same label, in any order.

    Masks are grouped around the mask that matches most other masks; the remaining masks are grouped in the same way.
    """
    drawn = [(k, a.mask) for k, a in enumerate(answers) if a.mask is not None]
    out = [a.action for a in answers]
    if len({mask.size for _, mask in drawn}) > 1:
        return [f"{o} {k}" if answers[k].mask is not None else o for k, o in enumerate(out)]
    same = boundary_ious([mask for _, mask in drawn]) >= SAME_MASK
    left = set(range(len(drawn)))
    while left:
        middle = max(left, key=lambda i: (sum(bool(same[i, j]) for j in left), drawn[i][1].counts))
        for j in [j for j in left if same[middle, j]]:
            out[drawn[j][0]] = f"change {drawn[middle][1].counts.decode('ascii')}"
            left.discard(j)
    return out


def disagreements(standing: Mapping[str, Sequence[Answer]]) -> list[str]:
    """The items on which reviewers have different opinions; answers that were taken back are ignored."""
    return [item_id for item_id, answers in standing.items() if len(set(opinions(answers))) > 1]
