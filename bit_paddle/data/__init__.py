"""From image files to micro-batches."""
