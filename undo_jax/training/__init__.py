"""Training: one pure train step, and a loop that trains many models as one program.

train_step.py    the train step of every stage, and its hyperparameters
optim.py         optimizers, schedules, and which parameters train
trial.py         trials (models to train), and their slots on the devices
programs.py      the step lifted to all trials, jitted
population.py    those programs, compiled for given trials
loop.py          the training loop, with evaluations and saves
meter.py         records of training: loss and speed
batch_shapes.py  batches as shapes, to compile without data
"""
