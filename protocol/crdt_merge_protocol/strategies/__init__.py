"""Layer 2: pure, deterministic merge strategies over the canonically ordered contributions."""
