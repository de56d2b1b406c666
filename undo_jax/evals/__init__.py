"""Scores of one model, as pure functions to be mapped over many."""
