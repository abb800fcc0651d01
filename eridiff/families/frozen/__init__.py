"""How the weights of a frozen base are kept: in how many bits, and on which side of the bus."""
