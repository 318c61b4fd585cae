"""The decoder one layer at a time: the walk, what is seen on it, and layers that are finished."""
