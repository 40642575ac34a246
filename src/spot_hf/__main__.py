"""`python -m spot_hf`: the same as `spot-hf`."""

from .cli import main_and_exit


if __name__ == "__main__":
    main_and_exit()
