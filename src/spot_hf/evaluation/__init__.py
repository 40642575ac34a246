"""What a model is worth at how many tokens, against what one would use otherwise."""
