"""Offline: from trained networks and images to a bundle, and what shows a bundle at work."""
