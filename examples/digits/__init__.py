"""How the shipped bundle `models/digits` is made: data, networks and training."""
