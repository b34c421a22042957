"""What Tandem's containers and their monitoring are made of."""
