"""Models and training states on disk, with digests."""
