"""One test file per module of `edge_node`."""
