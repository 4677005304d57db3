"""Quantization-aware training with hardware in the loop."""
