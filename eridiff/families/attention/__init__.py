"""The attention of the families' denoisers: diffusers' own computation, with seams for faster products."""
