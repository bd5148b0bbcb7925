"""The control API: gRPC definitions and the code generated from them."""
