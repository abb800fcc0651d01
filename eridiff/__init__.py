"""eridiff: LoRA fine-tuning of image models as a staged pipeline with cached artifacts."""

__version__ = "0.1.0"
