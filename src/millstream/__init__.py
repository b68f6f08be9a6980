"""Millstream: train PyTorch models in batches and online; same model, same loop, same checkpoint."""

__version__ = "0.1.0"
