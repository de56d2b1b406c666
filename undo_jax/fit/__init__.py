"""Does a stage's train step fit a TPU slice, and what bounds it? Asked before one is booked.

The step is compiled for the slice, which needs its compiler (libtpu) but no TPU.
"""
