"""See what a vision network looks at and what it has learned, while it trains with PyTorch Lightning."""

__version__ = "0.1.0"
