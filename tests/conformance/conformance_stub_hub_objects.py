"""Stands in for `utils/fetch_hub_objects_for_ci.py`, which transformers' source archive lacks: where the suite wants a picture
of the Hub, it gets a drawn one, and nothing is downloaded."""

from PIL import Image


def url_to_local_path(url):
    return Image.radial_gradient("L").resize((640, 480)).convert("RGB")  # load_image also takes pictures
