"""Training for few tokens."""
