"""Experiments: checked, scheduled, trained, saved."""
