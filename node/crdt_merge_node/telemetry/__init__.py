"""What the daemon tells about itself."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Final, cast

_RICH: Final = "rich"


def _import_structlog() -> None:
    """Import it without rich, which it would take to colour tracebacks: seven MiB that no daemon looks at."""
    is_absent = _RICH not in sys.modules
    if is_absent:
        sys.modules[_RICH] = cast("ModuleType", None)  # What an import then finds missing.
    try:
        import structlog  # noqa: F401 - for its effect: the next import finds it.
    finally:
        if is_absent:
            del sys.modules[_RICH]


_import_structlog()
