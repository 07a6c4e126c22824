"""How weights move: optimizers, learning-rate schedules and averages of weights."""
