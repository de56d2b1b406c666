"""Many models trained as one program: a leading axis of members, sharded over the `sweep` axis.

lanes.py     who trains: members, dealt to devices
programs.py  what runs: the jitted programs of all members together
compiled.py  those programs compiled for the members at hand
loop.py      when: the training loop, with its evaluations and saves
meter.py     what is told: records, loss and speed
"""
