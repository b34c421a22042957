"""One test file per module of `cloud_service`."""
