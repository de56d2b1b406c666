"""Does a stage's train step fit a TPU slice or GPUs, and what bounds it? Without having them.

The step is compiled for them ahead of time, by libtpu or XLA's CUDA plugin, which needs no chip.
"""
