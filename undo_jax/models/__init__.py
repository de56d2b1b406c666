"""Language models behind the `LM` protocol."""
