"""The service with the full model: answers what the edge escalates."""
