"""What one model scores and writes, as pure functions."""
