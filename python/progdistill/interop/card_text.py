"""Values of the user's in a Markdown page that strangers read: escaped, and without the folders of a machine."""

from __future__ import annotations

import html
import re
from typing import Any

_MOST = 200
_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_CREDENTIALS = re.compile(r"(?<=//)[^/\s]*@")
# From where a path of this machine begins to its last separator: names may hold blanks.
_FOLDERS = re.compile(r"(?:(?<=[\s'\"(=:,])|^)(?:[A-Za-z]:|~\w*|\.\.)?[/\\](?:.*[/\\])?", re.DOTALL)
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~$-])")


def without_folders(text: str) -> str:
    """The text with paths of this machine cut down to their last part; relative ones and addresses stay.

    Addresses lose what may be a secret: name and password, and what follows a question mark.
    """
    if _URL.match(text):
        return _CREDENTIALS.sub("", text.split("?")[0])
    return _FOLDERS.sub("", text.rstrip("/\\"))


def public(value: Any) -> Any:
    """JSON values with every text as `without_folders` leaves it."""
    if isinstance(value, dict):
        return {key: public(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [public(item) for item in value]
    return without_folders(value) if isinstance(value, str) else value


def escaped(text: str) -> str:
    """The text as one line of Markdown that shows it as it is, at most 200 characters of it, and means nothing."""
    line = " ".join(without_folders(text).split())
    shown = line if len(line) <= _MOST else f"{line[: _MOST - 3]}..."
    return _SPECIAL.sub(r"\\\1", html.escape(shown, quote=False))


def number(value: object) -> str:
    """A whole number with its digits grouped, another to three digits; nothing for what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def listed(numbers: tuple[int, ...], last: str = "or") -> str:
    """ "1", "1 or 2", "1, 2 or 4"."""
    words = [str(value) for value in numbers]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
