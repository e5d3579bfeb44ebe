import gzip
import os
import re
import tarfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.sdist import sdist

HERE = Path(__file__).parent
README = (HERE / "README.md").read_text(encoding="utf-8")
VERSION = re.findall(
    r'^__version__ = "(.+)"$', (HERE / "vitpose_fast" / "__init__.py").read_text(encoding="utf-8"), re.M
)[0]
CORE = [
    "torch>=2.10",
    "triton>=3.6; platform_system == 'Linux'",
    "numpy>=1.26",
    "safetensors>=0.5",
    "pillow>=12.3",
    "tyro>=1.0",
    "tqdm>=4.66",
]
TRAIN = ["pycocotools>=2.0.8", "matplotlib>=3.8", "scipy>=1.11", "simplejpeg>=1.8"]
HUB = ["huggingface_hub>=1.0"]


class SourceArchive(sdist):
    """Build a reproducible source archive: sorted entries, no owner, one date (SOURCE_DATE_EPOCH, or else 0).

    Wheels need no extra code: setuptools makes them reproducible if SOURCE_DATE_EPOCH is set.
    """

    def make_archive(self, base_name, format, root_dir=None, base_dir=None, owner=None, group=None):
        if format != "gztar":
            return super().make_archive(base_name, format, root_dir, base_dir, owner, group)
        date = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))

        def reproducible(entry):
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime = date
            entry.mode = 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
            return entry

        file = f"{base_name}.tar.gz"
        with (
            open(file, "wb") as raw,
            gzip.GzipFile("", "wb", fileobj=raw, mtime=date) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            archive.add(Path(root_dir or ".") / base_dir, base_dir, filter=reproducible)  # adds entries sorted by name
        return file


setup(
    cmdclass={"sdist": SourceArchive},
    name="vitpose-fast",
    version=VERSION,
    description="Fast ViTPose and ViTPose++: modules, prediction, training and evaluation",
    long_description=README,
    long_description_content_type="text/markdown",
    author="vitpose_fast developers",
    url="https://arxiv.org/abs/2212.04246",
    project_urls={
        "ViTPose (paper)": "https://arxiv.org/abs/2204.12484",
        "ViTPose++ (paper)": "https://arxiv.org/abs/2212.04246",
    },
    keywords="pose estimation, ViTPose, vision transformer, Triton, CUDA",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(".", include=["vitpose_fast", "vitpose_fast.*"]), *find_packages("kernels")]
    + find_packages("training"),
    # The folders kernels/ and training/ hold one package each and are not packages themselves: a top-level package
    # `kernels` would shadow the project of that name on PyPI.
    package_dir={"vitpose_kernels": "kernels/vitpose_kernels", "vitpose_training": "training/vitpose_training"},
    package_data={"": ["py.typed"], "vitpose_kernels.gpu": ["tuned.json"]},
    install_requires=CORE,
    extras_require={
        "train": TRAIN,
        "hub": HUB,
        "flash-attn": ["flash-attn>=2.5"],
        "xformers": ["xformers>=0.0.28"],
        "tensorboard": ["tensorboard>=2.16"],
        "wandb": ["wandb>=0.17"],
        "test": [
            *TRAIN,
            *HUB,
            "build",
            "faster-coco-eval>=1.7",
            "hypothesis",
            "mypy",
            "opencv-python-headless==4.11.0.86",
            "pytest",
            "pytest-benchmark",
            "pytest-xdist",
            "ruff",
            "setuptools>=77",
            "supervision>=0.27",
            "tensorboard>=2.16",
            "transformers>=5",
        ],
    },
    entry_points={"console_scripts": ["vitpose-fast = vitpose_fast.__main__:main"]},
)
