"""A local Hugging Face Hub for tests."""
