"""The service next to the devices: answers by itself when it can be trusted, else asks the cloud."""

import os

# gRPC reads it when it is imported, and else writes a line for each handshake that a stranger fails.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
