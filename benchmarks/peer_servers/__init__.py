"""One adapter for each peer, `python -m benchmarks.peer_servers.for_NAME`, run in the peer's environment."""
