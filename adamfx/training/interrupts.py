"""Ctrl-C, and the SIGTERM of a cluster, as a note that a loop reads between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from typing import Any

LEFT = object()  # what a call returns that Ctrl-C has left; also the end of the batches
AGAIN = 0.25  # seconds; what comes sooner is the same press to a hand, and to a shell that sends it twice
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Notes Ctrl-C instead of raising it, so that it can never come between two assignments.

    The second one, a quarter of a second later or more, leaves a call made through `leavable`: what may
    hang. What runs inside another (a fit in an evaluation) hands the note on to it. SIGTERM is noted like
    Ctrl-C, where nobody else handles it; the next run to begin ends the process then.
    Python delivers signals to the main thread; elsewhere nothing is changed.
    """

    terminated = False  # whether this process was asked to end

    def __init__(self) -> None:
        self.pressed = self.waiting = False
        self.first = 0.0  # when it was pressed first
        self.may_leave: Callable[[], bool] = lambda: True
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if Interrupts.terminated:
            raise SystemExit(128 + signal.SIGTERM)
        if threading.current_thread() is threading.main_thread():
            for which in SIGNALS:
                handler = signal.getsignal(which)
                # None: not set from Python, so it could not be set back. Ignored, as Ctrl-C is by a job in
                # the background: not meant for us.
                theirs = which == signal.SIGTERM and handler not in (
                    signal.SIG_DFL,
                    *_ours(handler),
                )
                if handler in (None, signal.SIG_IGN) or theirs:
                    continue
                self.before[which] = handler
                signal.signal(which, self.press)
        return self

    def __exit__(self, *_: Any) -> None:
        for which, handler in self.before.items():
            signal.signal(which, handler)
            for outer in _ours(handler):
                outer.__self__.pressed |= self.pressed

    def press(self, which: int = signal.SIGINT, *_: Any) -> None:
        if which == signal.SIGTERM:
            Interrupts.terminated = True
        now = time.monotonic()
        self.first, self.pressed = self.first or now, True
        again = now - self.first >= AGAIN
        if again and self.waiting and self.may_leave():
            self.waiting = False  # raises once; what comes after is only noted
            raise KeyboardInterrupt

    def leavable(self, function: Any, *args: Any, where: Callable[[], bool] = lambda: True) -> Any:
        """function(*args), or LEFT if Ctrl-C was pressed again meanwhile, at a moment when `where` holds."""
        try:
            self.may_leave, self.waiting = where, True
            out = function(*args)
            self.waiting = False
            return out
        except KeyboardInterrupt:
            self.pressed, self.waiting = True, False
            return LEFT
        finally:
            self.waiting = False

    def until(self, ready: Callable[[], bool]) -> bool:
        """Waits until it is ready, by looking, so that a second Ctrl-C is heard; False if that came first."""

        def wait() -> None:
            pause = 0.0
            while not ready():
                time.sleep(pause)
                pause = min(pause + 1e-5, 1e-3)

        return self.leavable(wait) is not LEFT


def _ours(handler: Any) -> tuple:
    """The handler, if it is that of another Interrupts."""
    return (handler,) if isinstance(getattr(handler, "__self__", None), Interrupts) else ()
