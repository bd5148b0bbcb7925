"""Other implementations asked for the same merges. Each lives in a scratch environment, never in this one."""
