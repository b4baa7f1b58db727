"""Text that may come from anywhere, made fit for a document."""

from __future__ import annotations

import re


def printable(text: str) -> str:
    """The text with every character that XML or UTF-8 cannot hold replaced by U+FFFD.

    These are control characters but tab and line breaks, and lone surrogates, as in the names of files that
    are not UTF-8. Escaping is left to whoever builds the document.
    """
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)
