"""What is wrong with a set of images, found by reading all of it once: `pcls data doctor`."""
