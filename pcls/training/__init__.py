"""Training: the state, the losses, the optimizer, the step, and the loop around it."""
