"""Ctrl-C as a note that a loop reads between two steps."""

from __future__ import annotations

import signal
import threading
from typing import Any

LEFT = object()  # what a call returns that Ctrl-C has left; also the end of the batches


class Interrupts:
    """Notes Ctrl-C instead of raising it, so that it can never come between two assignments.

    The second one leaves a call made through `leavable`: code of the caller, which may hang.
    Python delivers signals to the main thread; elsewhere nothing is changed.
    """

    def __init__(self) -> None:
        self.pressed = self.waiting = False
        self.before: Any = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self.before = signal.getsignal(signal.SIGINT)
            if self.before is signal.SIG_IGN:  # as in a job in the background: not meant for us
                self.before = None
            if self.before is not None:  # None: not set from Python, so it could not be set back
                signal.signal(signal.SIGINT, self.press)
        return self

    def __exit__(self, *_: Any) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def press(self, *_: Any) -> None:
        again, self.pressed = self.pressed, True
        if again and self.waiting:
            self.waiting = False  # raises once; what comes after is only noted
            raise KeyboardInterrupt

    def leavable(self, function: Any, *args: Any) -> Any:
        """function(*args), or LEFT if Ctrl-C was pressed again meanwhile."""
        try:
            self.waiting = True
            out = function(*args)
            self.waiting = False
            return out
        except KeyboardInterrupt:
            self.pressed, self.waiting = True, False
            return LEFT
        finally:
            self.waiting = False
