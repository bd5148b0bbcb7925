"""The deterministic core: values in, effects out. No I/O, no clock, no asyncio, no global randomness."""
