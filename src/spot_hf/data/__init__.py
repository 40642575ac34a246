"""Images by the name of their data set."""
