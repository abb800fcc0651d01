"""LoRA: which layers are adapted, how they are put into a denoiser, and the files that come out."""
