"""How the shipped bundle ``models/cifar10`` is made: data, networks and training."""
