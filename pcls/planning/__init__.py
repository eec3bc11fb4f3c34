"""What a step costs before it runs: compile it for a topology, read the program, predict what bounds it."""
