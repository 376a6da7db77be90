"""Ctrl-C of the command line, from the first line of the package on.

While Python imports, it ends the program: there is nothing to keep. Then the first one raises
KeyboardInterrupt, and the second ends the program wherever it is, also inside a compiler, for which
Python's own handler would wait.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from typing import Any

STOPPED = 130  # the exit code that shells expect
swallowed = threading.Event()  # Ctrl-C came within a callback that cannot raise


def importing() -> None:
    """Until `running`; nothing where Ctrl-C is not meant for us, as in a job in the background."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(
            signal.SIGINT, lambda *_: leave("stopped before anything was run; run it again")
        )


def running() -> None:
    """From here on. The process is ours: nothing of this is taken back."""
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ours, pythons = socket.socketpair()  # for each Ctrl-C, Python writes a byte at once
    pythons.setblocking(False)
    signal.set_wakeup_fd(pythons.detach(), warn_on_full_buffer=False)
    threading.Thread(target=second, args=(ours,), daemon=True).start()
    sys.unraisablehook = unraisable


def second(presses: socket.socket) -> None:
    """Waits for Ctrl-C twice."""
    presses.recv(1)
    presses.recv(1)
    leave("stopped at once; files that were written are whole, and --resume continues with them")


def leave(line: str) -> None:
    """Ends the program; what else it was doing is not waited for."""
    try:
        os.write(2, f"\n{line}\n".encode())
    finally:  # the terminal may be closed
        os._exit(STOPPED)


def unraisable(info: Any) -> None:
    """JAX is called when Python collects garbage; there, an exception would be printed and forgotten."""
    if issubclass(info.exc_type, KeyboardInterrupt):
        swallowed.set()
    else:
        sys.__unraisablehook__(info)
