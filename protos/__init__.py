"""Wire formats: the `.proto` files and their committed stubs (`make protos` regenerates them)."""
