"""Writing in a thread while the next thing is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class WriterThread:
    """Context manager around one thread that calls `write` with what is submitted, in order.

    At most `limit` things are waiting or being written: `submit` then waits, so memory stays bounded. What `write`
    raises is raised by a later `submit` or by `finish`; nothing is written after it. An exception in the block drops
    what is still waiting.
    """

    def __init__(self, write: Callable[..., None], limit: int = 2) -> None:
        self._write = write
        self._limit = limit
        self._waiting: deque[Future[None]] = deque()
        self._failed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="progdistill-write")

    def submit(self, *arguments: Any) -> None:
        """Hands `write`'s arguments over.

        Raises:
            Exception: what `write` raised for something that was submitted before.
        """
        while len(self._waiting) >= self._limit or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._guarded, *arguments))

    def finish(self) -> None:
        """Waits until everything is written.

        Raises:
            Exception: what `write` raised.
        """
        while self._waiting:
            self._waiting.popleft().result()

    def __enter__(self) -> WriterThread:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            self.finish()

    def _guarded(self, *arguments: Any) -> None:
        if self._failed:
            return
        try:
            self._write(*arguments)
        except BaseException:
            self._failed = True
            raise
