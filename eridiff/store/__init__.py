"""Bytes and names on disk: files, tensors, snapshots and runs. Nothing here loads torch."""
