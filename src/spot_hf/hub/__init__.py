"""The Hub: cards, uploads, and loading SpotViTs."""
