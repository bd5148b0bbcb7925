import pytest
import structlog


@pytest.fixture
def lines():
    """The log lines of a test, which then stay off standard error."""
    with structlog.testing.capture_logs() as captured:
        yield captured
