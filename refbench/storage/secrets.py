"""Keeps keys, passwords and home folders out of files, pages and messages."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

HIDDEN = "***"
# A name means a secret if one of its words does: `api_key` and `HF_TOKEN`, but not `max_tokens` or `keypoints`.
_SECRET_WORDS = re.compile(
    r"(?:^|[-_. ])(?:api)?(?:key|token|secret|password|passwd|passphrase|pwd|credential|credentials|auth|authorization|"
    r"cookie)(?:$|[-_. ])|apikey|accesskey|secretkey|authtoken",
    re.IGNORECASE,
)
# The boundary between the words of `apiKey`.
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_USER_IN_URL = re.compile(r"(?<=://)[^/\s@'\"<>]+@")
_SECRET_IN_QUERY = re.compile(
    r"(?<=[?&;])([^=&;#\s]*(?:key|token|secret|password|signature|sig|credential|auth)[^=&;#\s]*)=[^&;#\s'\"<>]*",
    re.IGNORECASE,
)
_SECRET_IN_HEADER = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_HOME = re.compile(r"(?<![\w.])(?:/home/[^/\s:'\"]+|/Users/[^/\s:'\"]+|/root)(?=[/\s:'\",)]|$)")
# Shorter values are words that occur in any text.
LEAST_LENGTH = 6
# Variables that shells set: the present folder and the one before.
NO_SECRETS = ("PWD", "OLDPWD")


def means_secret(name: str) -> bool:
    """Whether an option or environment variable of this name holds a secret."""
    return bool(_SECRET_WORDS.search(_CAMEL.sub("_", name)))


def redacted(text: str, secrets: Collection[str] = ()) -> str:
    """The text without secrets: users and passwords in URLs, keys in queries and headers, the values `secrets`, and the
    values of environment variables whose names mean secrets.
    """
    for value in sorted({*secrets, *_in_environment()}, key=len, reverse=True):
        if len(value) >= LEAST_LENGTH:
            text = text.replace(value, HIDDEN)
    if "://" in text:
        text = _USER_IN_URL.sub(f"{HIDDEN}@", text)
    if "=" in text:
        text = _SECRET_IN_QUERY.sub(lambda found: f"{found[1]}={HIDDEN}", text)
    return _SECRET_IN_HEADER.sub(lambda found: f"{found[1]} {HIDDEN}", text)


def published(text: str, secrets: Collection[str] = ()) -> str:
    """As `redacted`, for a file that may be published: home folders become `~`."""
    text = redacted(text, secrets)
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(rf"(?<![\w.]){re.escape(home)}(?=[/\s:'\",)]|$)", "~", text)
    return _HOME.sub("~", text)


def published_options(options: Mapping[str, object]) -> dict[str, object]:
    """Options as they may be published; the value of an option whose name means a secret is HIDDEN."""
    secrets = secret_values(options)

    def value_of(name: str, value: object) -> object:
        if means_secret(name) and value not in ("", None):
            return HIDDEN
        return published(value, secrets) if isinstance(value, str) else value

    return {name: value_of(name, value) for name, value in options.items()}


def published_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line as it may be published."""
    pairs = [a.lstrip("-").removeprefix("o").partition("=") for a in arguments]
    secrets = [value for name, equals, value in pairs if equals and means_secret(name) and len(value) >= LEAST_LENGTH]
    out = []
    for argument, (name, equals, _) in zip(arguments, pairs, strict=True):
        if equals and (means_secret(name) or means_secret(argument.partition("=")[0])):
            out.append(f"{argument.partition('=')[0]}={HIDDEN}")
        else:
            out.append(published(argument, secrets))
    return out


def secret_values(options: Mapping[str, object]) -> list[str]:
    """The values of options whose names mean secrets."""
    return [str(value) for name, value in options.items() if means_secret(name) and len(str(value)) >= LEAST_LENGTH]


def _in_environment() -> list[str]:
    found = [value for name, value in os.environ.items() if name not in NO_SECRETS and means_secret(name)]
    # A plain word, as in GIT_AUTH=disabled, may occur in any text.
    return [value for value in found if len(value) >= LEAST_LENGTH and not value.isalpha()]
