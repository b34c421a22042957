"""The service with the full model: answers what the edge escalates."""

import os

# gRPC reads it when it is imported, and else writes a line for each handshake that a stranger fails.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
