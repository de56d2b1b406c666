"""Many models trained as one program: a leading axis of members, sharded over the `sweep` axis.

lanes.py     members, and their lanes on the devices
programs.py  one model's functions lifted to all members, jitted
compiled.py  those programs, compiled for given members
loop.py      the training loop, with evaluations and saves
meter.py     records of training: loss and speed
"""
