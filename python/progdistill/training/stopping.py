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
    """Context manager that turns the first SIGTERM into a request; a second one has its usual effect.

    Schedulers of clusters send SIGTERM some seconds before they kill. Outside of the main thread, where Python allows
    no signal handlers, nothing changes.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: object = None
        self._installed = False

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
            self._installed = True
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def pending(self) -> bool:
        """Whether this process or another one of the run was asked to stop; all processes get the same answer."""
        return any_process(self._asked)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True
        self._restore()

    def _restore(self) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)
            self._installed = False
