"""The oracle: positions that serve a frozen model best, found by gradient descent (SPoT-ON)."""
