"""Records of training, and what a terminal shows of it."""
