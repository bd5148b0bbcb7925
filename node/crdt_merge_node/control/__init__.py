"""The control plane: gRPC over a Unix socket, as a thin shell over a plain :class:`~.api.NodeApi`."""
