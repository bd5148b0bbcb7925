"""gRPC without its asyncio half, which a command never uses and which doubles the time to import it.

``import grpc`` imports ``grpc.aio`` at its end, for those who use it without asking for it. While that runs,
an empty module stands in its place; afterwards it is taken away, so that whoever does ``import grpc.aio``
later gets the real one. Should a release of gRPC need more than the name while it is imported, the plain
import is what remains.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Final

_ASYNC: Final = "grpc.aio"


def import_grpc() -> None:
    """Import ``grpc`` if it is not imported yet, leaving out ``grpc.aio``."""
    if "grpc" in sys.modules:
        return
    placeholder = ModuleType(_ASYNC)
    sys.modules[_ASYNC] = placeholder
    try:
        import grpc
    except (AttributeError, ImportError):
        for name in [name for name in sys.modules if name == "grpc" or name.startswith("grpc.")]:
            del sys.modules[name]
        return
    if sys.modules.get(_ASYNC) is placeholder:
        del sys.modules[_ASYNC]
    if vars(grpc).get("aio") is placeholder:
        del grpc.aio
