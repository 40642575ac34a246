"""ONNX Runtime for browsers, from the npm registry: no Node.js is needed."""

import base64
import hashlib
import io
import os
import shutil
import tarfile
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from huggingface_hub import cached_assets_path


PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
# As the registry states it, of exactly this version: nothing else is run on the page.
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# WebAssembly alone, and with WebGPU.
FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
REGISTRY = "npm_config_registry"  # the variable that npm reads, too
NOTICE = f"{PACKAGE} {VERSION} of https://www.npmjs.com/package/{PACKAGE}: MIT licence, Microsoft Corporation.\n"


def onnxruntime_web() -> Path:
    """
    A folder of this machine's cache with `FILES`; downloaded, 33 MB, where they are not there yet.

    Raises:
        `OSError`: the registry cannot be reached, or gives something else.
    """
    folder = cached_assets_path(library_name="spot_hf", namespace=PACKAGE, subfolder=VERSION)
    if all((folder / name).is_file() for name in FILES):
        return folder
    registry = os.environ.get(REGISTRY, "https://registry.npmjs.org").rstrip("/")
    address = f"{registry}/{PACKAGE}/-/{PACKAGE}-{VERSION}.tgz"
    try:
        with urlopen(address, timeout=60) as response:
            content = response.read()
    except (OSError, ValueError, HTTPException) as error:
        raise OSError(f"{address} cannot be downloaded: {error} (the variable {REGISTRY} names another registry)") from None
    if base64.b64encode(hashlib.sha512(content).digest()).decode() != INTEGRITY:
        raise OSError(f"{address} is not the {PACKAGE} {VERSION} that it should be: its digest is another one")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for name in FILES:
            member = archive.extractfile(f"package/dist/{name}")
            assert member is not None
            temporary = folder / f".{name}.{os.getpid()}.tmp"
            with temporary.open("wb") as file:
                shutil.copyfileobj(member, file)
            temporary.replace(folder / name)
    return folder
