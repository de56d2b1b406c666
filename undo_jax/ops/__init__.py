"""Numerical kernels, each beside a plain reference."""
