from setuptools import setup

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

setup(
    name="vitpose-fast",
    version="0.1.0",
    description="Fast ViTPose and ViTPose++: modules, prediction, training and evaluation",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The kernels and training folders have no __init__.py at the top level: a top-level package called `kernels`
    # would shadow another project's. They ship inside the package; links make checkouts see the same layout.
    packages=[
        "vitpose_fast",
        "vitpose_fast.checkpoints",
        "vitpose_fast.models",
        "vitpose_fast.kernels",
        "vitpose_fast.kernels.gpu",
        "vitpose_fast.training",
    ],
    package_dir={
        "vitpose_fast.kernels": "kernels",
        "vitpose_fast.kernels.gpu": "kernels/gpu",
        "vitpose_fast.training": "training",
    },
    package_data={"vitpose_fast": ["py.typed"]},
    install_requires=CORE,
    extras_require={
        "train": TRAIN,
        "hub": HUB,
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
            "ruff",
            "setuptools>=77",
            "supervision>=0.27",
            "tensorboard>=2.16",
            "transformers>=5",
        ],
    },
    entry_points={"console_scripts": ["vitpose-fast = vitpose_fast.__main__:main"]},
)
