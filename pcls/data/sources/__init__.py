"""Where records come from: random access by record number, whatever lies on the disk."""
