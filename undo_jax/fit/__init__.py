"""Does a stage's train step fit a TPU slice or GPUs, and what bounds it? Asked before booking.

The step is compiled for them, which needs the compiler (libtpu, or XLA's CUDA plugin) but no chip.
"""
