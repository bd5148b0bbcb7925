"""``python -m crdt_merge_node``: the command line."""

from .cli import main

main()
