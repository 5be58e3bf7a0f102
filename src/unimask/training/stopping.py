"""Stop a training after its current step."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def without_signals() -> Iterator[None]:
    """Block the signals for processes that start inside: a terminal or a scheduler sends them to all.

    The workers of the loader end with the training anyway; ended earlier, they would take it with them.
    """
    if sys.platform == "win32":  # knows no masks of signals
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def stop_signals(ask_to_stop: Callable[[], None], processes: int) -> Iterator[None]:
    """Call `ask_to_stop` on Ctrl-C and SIGTERM inside; a second signal raises KeyboardInterrupt.

    Of several processes, SIGTERM ends each at once: that is how the launcher ends the others when one has
    failed, and they may wait for it inside of the engine, where no handler is ever called. Only the main
    thread can handle signals; in any other thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        ask_to_stop()

    numbers = STOP_SIGNALS if processes == 1 else (signal.SIGINT,)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
