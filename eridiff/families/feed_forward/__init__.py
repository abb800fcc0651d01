"""The feed-forward layers of the families' denoisers: diffusers' own computation, with a faster gradient."""
