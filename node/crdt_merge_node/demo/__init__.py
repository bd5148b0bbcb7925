"""The demonstration: five daemons build one model from five shards, split, crash, heal and agree."""
