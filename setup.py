"""Packaging of spot_hf. Tool settings are in pyproject.toml, tested versions in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup


HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "src/spot_hf/version.py").read_text())[1]

# Where there is no GPU, install torch first and from its CPU index: what PyPI offers brings several GB of CUDA packages.
#
# Lower bounds are what `make test-oldest` tests (constraints-oldest.txt), but for torch. Upper bounds exclude the first minor
# version that was not tested, where we use private API, which any may change: docs/private_api.md lists it.
INSTALL_REQUIRES = [
    "torch>=2.6",
    "transformers>=5.10.1,<5.24",  # private API: the Trainer's, the image processors', the models'
    "huggingface_hub>=1.5",
    "datasets>=4.0,<5.3",  # private API: features and cards
    "accelerate>=1.1",
    "safetensors>=0.4.3",
    "evaluate>=0.4.3",
    "jinja2>=3.1",  # huggingface_hub renders card templates with it
    "numpy>=1.26",
    "pyarrow>=15",  # shards of coordinates
    "pillow>=10.0.1",  # the oldest that transformers' image processors take
    "matplotlib>=3.7",  # pictures and plots
    "joblib>=1.3",  # cores that a process may use
    "scikit-learn>=1.3",  # digits, the embedded data set
    "fsspec>=2023.5",  # images of a stream from the Hub
    "scipy>=1.11",  # confidence intervals
    "tenacity>=8.3",  # uploads that are tried again; the first that says how long it waits
    # Random crops, RandAugment, mixup, cutmix; torchvision's need a build that not every torch has. Before 0.8.2, cutmix lacks
    # `use_correct_lambda`; before 0.9, a crop reads its ratio upside down where no draw fits. Private API: the draws of mixup
    # and cutmix.
    "kornia>=0.9,<0.10",
    "pyyaml>=6.0",  # recipes
    "tqdm>=4.66.3",
    "wrapt>=1.15",  # SpotViT is registered when transformers is imported, and not before
]
# ImageNet-C's own code, with its severities, for today's NumPy and scikit-image; it brings OpenCV and numba.
CORRUPTIONS = ["imagecorruptions-imaug>=1.1.5"]
# Export to ONNX, by torch's own exporter, and running it.
ONNX = ["onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.22"]
EXTRAS = {
    "corruptions": CORRUPTIONS,
    "timm": ["timm>=1.0.11"],  # convolutional networks of timm: to convert them, and to load what was converted
    "onnx": ONNX,
    "browser": [
        "playwright",
        "axe-playwright-python",
    ],  # tests of the page: drives Chromium, and asks axe what is not accessible
    "test": ["pytest", "pytest-xdist", "aiohttp", "peft", *CORRUPTIONS],  # aiohttp: the local Hub of the tests
    "quality": ["ruff", "mypy"],
    "conformance": ["parameterized"],  # needed by transformers' own test suite
}

setup(
    name="spot_hf",
    version=VERSION,
    description="Subpixel placement of tokens (SPoT) for Hugging Face transformers: ViTs with few, freely placed tokens",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="the spot_hf authors",
    python_requires=">=3.10",
    packages=[*find_packages("src"), "spot_hf.hub_cards"],
    package_dir={"": "src", "spot_hf.hub_cards": "hub_cards"},
    package_data={
        "spot_hf.data": ["*.txt"],
        "spot_hf.demo": ["page/*"],
        "spot_hf.evaluation": ["metrics/*/*"],
        "spot_hf.hub_cards": ["*.md"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["spot-hf=spot_hf.cli:main_and_exit"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        *[f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)],
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
