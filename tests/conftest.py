"""What all tests need of the process that they run in."""

import gc
import signal
from pathlib import Path
from typing import Final

import pytest

_GROWTH_BYTES: Final = 256 << 20
_PAGE_BYTES: Final = 4096

# A shell that starts the tests in the background has them ignore SIGINT, nohup SIGHUP, and so would every
# daemon that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class _Collector:
    """Has Python look for garbage once the process has grown by a good deal.

    A node, its loop and the buffers of both refer to each other in circles. Python walks through the oldest
    objects once a quarter as many have come, be they ints or models of megabytes: all tests took 4.8 GiB.
    """

    def __init__(self) -> None:
        self._settled = _resident_bytes()

    @pytest.hookimpl
    def pytest_runtest_logfinish(self) -> None:
        if _resident_bytes() - self._settled > _GROWTH_BYTES:
            gc.collect()
            self._settled = _resident_bytes()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE_BYTES


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Collector())
