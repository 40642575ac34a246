"""Packaging of spot_hf. Tool settings are in pyproject.toml, tested versions in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup


HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "src/spot_hf/version.py").read_text())[1]

# torch is named first and exactly where it is installed (Makefile, README): a range pulls several GB of CUDA packages on a
# machine without a GPU. A GPU machine brings its own.
INSTALL_REQUIRES = [
    "torch>=2.6",
    "transformers>=5.10.1",
    "huggingface_hub>=1.5",
    "datasets>=4.0",
    "accelerate>=1.1",
    "safetensors>=0.4.3",
    "evaluate>=0.4.3",
    "jinja2",  # huggingface_hub renders card templates with it
    "pillow",
    "matplotlib",  # pictures and plots
    "scikit-learn",  # digits, the embedded data set
    "fsspec",  # images of a stream from the Hub
    "scipy",  # confidence intervals
    "tenacity",  # uploads that are tried again
    "psutil",  # peak memory in the benchmark
    "kornia",  # random crops, RandAugment, mixup, cutmix; torchvision's need a build that not every torch has
    "pyyaml",  # recipes
    "tqdm",
]
EXTRAS = {
    "test": ["pytest", "pytest-xdist", "aiohttp", "peft"],  # aiohttp: the local Hub of the tests
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
    package_data={"spot_hf.evaluation": ["metrics/*/*"], "spot_hf.hub_cards": ["*.md"]},
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
