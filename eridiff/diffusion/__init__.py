"""The mathematics of training: time, noise, targets, losses. Pure functions of tensors and generators."""
