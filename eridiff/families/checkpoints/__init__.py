"""Base models as they lie on disk: which file holds which component, and how it is loaded."""
