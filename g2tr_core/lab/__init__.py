"""The synthetic world, training and the quality experiment. Not in the pack; imported by the command alone."""
