"""Distillation robustifies unlearning (arXiv 2506.06278), in JAX."""
