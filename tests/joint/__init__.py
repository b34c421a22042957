"""Both services as real processes, with real TCP, real images and a link between them that fails."""
