"""Stops a command at a safe point after Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal


class _StoppedError(Exception):
    """Ctrl-C or SIGTERM arrived during a wait."""


class StopSignal:
    """Records Ctrl-C and SIGTERM while its block runs. `raise_if_set` then ends the block without an error."""

    def __init__(self) -> None:
        self._set = False

    def is_set(self) -> bool:
        """Returns whether a signal has arrived."""
        return self._set

    def raise_if_set(self) -> None:
        """Ends the `with` block of this object if a signal has arrived."""
        if self._set:
            raise _StoppedError

    def __enter__(self) -> StopSignal:
        self._previous_handlers = {
            number: signal.signal(number, self._record) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        return kind is not None and issubclass(kind, _StoppedError)

    def _record(self, number: int, frame: object) -> None:
        self._set = True
