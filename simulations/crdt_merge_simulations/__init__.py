"""The protocol engines of many nodes in virtual time, faults from a seed."""
