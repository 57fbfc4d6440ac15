from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable

import pytest

from reference_trainer.stopping import SIGNALS, StopRequest

EACH = pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)


@EACH
def test_the_first_signal_is_only_noted_and_announced(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with StopRequest() as stop:
        assert not stop.requested
        assert stop.name is None
        signal.raise_signal(number)
        assert stop.requested
        assert stop.name == number.name
    # What was asked for is known after the run too.
    assert (stop.requested, stop.name) == (True, number.name)
    captured = capfd.readouterr()
    assert number.name in captured.err
    assert captured.out == ""


@EACH
def test_the_second_signal_leaves_at_once(number: signal.Signals) -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert stop.name == "SIGINT"


def leave_normally() -> None: ...


def leave_by_an_error() -> None:
    raise RuntimeError("broken")


def leave_by_two_signals() -> None:
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("leave", [leave_normally, leave_by_an_error, leave_by_two_signals])
def test_the_handlers_are_put_back(leave: Callable[[], None]) -> None:
    def own(*_: object) -> None: ...

    before = {number: signal.signal(number, own) for number in SIGNALS}
    try:
        with contextlib.suppress(RuntimeError, KeyboardInterrupt), StopRequest():
            assert all(signal.getsignal(number) is not own for number in SIGNALS)
            leave()
        assert all(signal.getsignal(number) is own for number in SIGNALS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
