"""Evaluation of one model, and text generation, as pure functions."""
