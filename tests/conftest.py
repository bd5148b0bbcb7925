"""What all tests need of the process that they run in."""

import signal

# A shell that starts the tests in the background has them ignore SIGINT, and every daemon they start as well.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
