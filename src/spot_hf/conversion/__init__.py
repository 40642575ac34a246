"""Checkpoints that people already have → SpotViT."""
