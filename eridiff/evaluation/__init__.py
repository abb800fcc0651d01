"""What a LoRA does: sampled images beside the base's, losses on the hold-out, scores, and one page of all."""
