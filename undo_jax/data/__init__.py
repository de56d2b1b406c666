"""Text to batches: tokenizers, packing, shuffled streams and the arithmetic tasks."""
