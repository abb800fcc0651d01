"""Training of a LoRA from cached latents and embeddings alone, exactly resumable on any number of devices."""
