"""How the shipped bundles were made: their data and their training."""
