"""Starting recipes elsewhere, or here under supervision: what would run is a pure function of what was asked for.

On the floor above `planning`, whose table of TPU slices it reads. The folder launch/ beside the package has what no
program renders: the Dockerfiles.
"""
