"""Pictures larger than memory, restored tile by tile."""
