"""The mesh, what is split over it, and the processes that share it."""
