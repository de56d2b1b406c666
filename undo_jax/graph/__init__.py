"""Recipes, and the graph of models that they describe."""
