"""Moving blobs: the side that serves them and the side that fetches them (PROTOCOL 5)."""
