"""Data sets, and the way from image files to micro-batches."""
