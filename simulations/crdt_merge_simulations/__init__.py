"""The world made reproducible: virtual time, faults, topologies."""
