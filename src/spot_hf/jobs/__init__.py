"""What every long job needs, and no task in particular."""
