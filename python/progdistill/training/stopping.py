"""Stopping a run in good order: SIGTERM lets the update finish, saves, and exits with status 0."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from progdistill.core.processes import any_process


class RunInterrupted(SystemExit):
    """The run was asked to stop and has saved its state; the same command resumes. Exit status 0."""

    def __init__(self, message: str) -> None:
        super().__init__(0)
        self.message = message

    def __str__(self) -> str:
        return self.message


class StopRequest:
    """Context manager that turns the first of some signals into a request; a second one has its usual effect.

    Schedulers of clusters send SIGTERM some seconds before they kill. Outside of the main thread, where Python allows
    no signal handlers, nothing changes.

    Args:
        signals: default SIGTERM.
    """

    def __init__(self, *signals: signal.Signals) -> None:
        self.received: signal.Signals | None = None
        """What this process was asked by; None if it was not."""
        self._signals = signals or (signal.SIGTERM,)
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._ask) for signum in self._signals}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def pending(self) -> bool:
        """Whether this process or another one of the run was asked to stop; all processes get the same answer."""
        return any_process(self.received is not None)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(signum)
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signum, handler = self._before.popitem()
            signal.signal(signum, handler or signal.SIG_DFL)
