"""Both services under the real client of the protocol, which lives in an environment of its own."""
