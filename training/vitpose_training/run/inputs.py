"""What a run is given: everything that is read, and can be refused, before anything is written."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vitpose_training.data.batches import SampleSet
from vitpose_training.data.order import Order
from vitpose_training.data.people import Labels, adjusted, by_data_set
from vitpose_training.data.read import read_labels
from vitpose_training.distributed import World, job
from vitpose_training.evaluation.scores import check_can_evaluate
from vitpose_training.evaluation.validate import check_detections
from vitpose_training.run.checkpoint import States, check_free
from vitpose_training.run.config import TrainConfig


@dataclass(frozen=True)
class Inputs:
    """What a run trains on, what it is evaluated on, and whether it continues an earlier one."""

    resumes: bool
    """Whether it goes on from the last saved state."""
    labels: list[Labels]
    """To train on; what only an evaluation needs of them is left out."""
    val: list[Labels]
    """To evaluate on; may be empty."""
    problems: tuple[str, ...]
    """What was left out, a line each: refused annotations, data sets without files to evaluate on."""
    samples: SampleSet
    """The people of `labels` as training samples."""
    order: Order
    """Which samples make up each update."""
    updates: int
    """How many updates the whole run has."""


def read_inputs(config: TrainConfig, world: World) -> Inputs:
    """Check options and folder, and read the annotations. Every process of the run calls it.

    Raises:
        ValueError, OSError: in every process alike, in one line.
    """
    world.agree(lambda: _check_processes(config, world))
    resumes = world.gather(world.agree(lambda: world.first and _resumes(config)))[0]
    return world.agree(lambda: _read(config, resumes))


def _check_processes(config: TrainConfig, world: World) -> None:
    """Refuse a batch that this number of processes cannot share."""
    if config.batch_size < world.size:
        raise ValueError(f"got batch_size={config.batch_size} for {world.size} processes, expected one each")
    smallest, largest = config.batch_size // world.size, math.ceil(config.batch_size / world.size)
    if smallest < math.ceil(largest / (config.micro_batch or largest)):
        raise ValueError(
            f"--batch-size {config.batch_size} in pieces of --micro-batch {config.micro_batch} leaves one of "
            f"{world.size} processes without samples at times: choose a batch that they divide"
        )
    if config.parallel == "fsdp" and world.size == 1:
        raise ValueError("--parallel fsdp shares a model among processes: start it with torchrun")


def _resumes(config: TrainConfig) -> bool:
    """Whether to continue the run in `config.out`; refuses a folder with a run that is neither continued nor replaced.

    torchrun may start its own run again without being told to resume.
    """
    file = config.out / "job"
    if job() and file.is_file() and file.read_text(encoding="utf-8") == job():
        return bool(States(config.out / "states").files())
    check_free(config.out, config)
    return config.resume


def _read(config: TrainConfig, resumes: bool) -> Inputs:
    """Read all annotations. Nobody waits for another process in here, so that all of them can refuse alike."""
    oddities = config.official_boxes, config.mpii_stretch
    labels = [adjusted(read_labels(*source), *oddities) for source in config.sources("train")]
    for one in labels:
        one.truth = None  # of use in evaluations only, and large
    sources, missing = config.sources("val"), []
    if not config.val and config.val_tasks is None:  # nobody has asked for them
        gone = [source for source in sources if not source[1].is_file()]
        missing = [f"{file}: no such file, so {own.name} is not evaluated" for own, file, _ in gone]
        sources = [source for source in sources if source not in gone]
    val = [adjusted(read_labels(*source), *oddities) for source in sources]
    check_can_evaluate(val)
    if config.boxes is not None and val:
        check_detections(by_data_set(val)[val[0].data_set.name], config.boxes)
    samples = SampleSet(
        labels,
        config.image_size,
        config.augmentation if config.augment else None,
        config.seed,
        config.keep_images,
    )
    order = Order(samples.task_of, config.batch_size, config.seed, config.sampling)
    return Inputs(
        resumes=resumes,
        labels=labels,
        val=val,
        problems=tuple(dict.fromkeys([*missing, *(p for one in (*labels, *val) for p in one.problems)])),
        samples=samples,
        order=order,
        updates=2 if config.dry_run else config.epochs * order.steps,
    )
