"""Full counts of what the tests try in small: many seeds, many frames, many kills. ``make nightly``."""
