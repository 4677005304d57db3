"""Ctrl-C once: finish what runs, then stop. Twice: stop at once."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

logger = logging.getLogger(__name__)


class Interrupts:
    """While entered, the first interrupt is only noted; the second raises `KeyboardInterrupt`.

    Signals reach the main thread only: in another thread nothing changes.
    """

    def __init__(self) -> None:
        self._requested = False
        self._before: Any = None

    @property
    def requested(self) -> bool:
        """Whether an interrupt came."""
        return self._requested

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True
        logger.warning("interrupted: running trials are finished first; press Ctrl-C again to stop at once")
