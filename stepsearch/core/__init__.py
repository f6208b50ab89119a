"""Core types: no torch, no ray, no pymoo, no pandas."""
