"""Images to latents and captions to embeddings, each once: what is wanted, what names it, how it is made."""
