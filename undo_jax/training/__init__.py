"""Training: one pure train step, and a loop that trains many models as one program.

train_step.py  the train step of every stage, and its hyperparameters
optim.py       optimizers, schedules, and which parameters train
programs.py    the step lifted to all trials that train together, jitted
population.py  trials (models to train), and those programs compiled for them
arguments.py   the arguments of the compiled step, as arrays or as shapes
loop.py        the training loop, with evaluations and saves
meter.py       records of training: loss and speed
"""
