"""What produces the figures that the documentation quotes."""
