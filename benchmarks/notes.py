"""Lines for people beside the figures: what was skipped, failed or is wrong."""

from __future__ import annotations

from typing import Any


def note(text: str, contender: str | None = None, failed: bool = False) -> dict[str, Any]:
    """A line for people; `failed` makes the exit status 1."""
    return {"contender": contender, "text": text, "failed": failed}


def note_line(note: dict[str, Any]) -> str:
    """A note with whom it is about."""
    return f"{note['contender']} {note['text']}" if note["contender"] else note["text"]


def first_line(error: Exception) -> str:
    """The error's type and the beginning of its message."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
