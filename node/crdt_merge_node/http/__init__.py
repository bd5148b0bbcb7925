"""The node over HTTP, read-only: health probes, metrics, the documents of ``--json``, and the dashboard.

``server`` listens, ``connections`` bounds what one client may take, ``guard`` decides who is answered at all,
``routes`` says what. Nothing here is imported by a daemon whose ``http.port`` is empty.
"""
