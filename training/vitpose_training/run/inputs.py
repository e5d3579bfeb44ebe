"""The inputs of a run: options, folders and annotations, all read and checked before anything is written."""

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
    """What a run trains on, what it is evaluated on, and whether it resumes an earlier run."""

    resumes: bool
    """Whether the run continues from its last saved state."""
    labels: list[Labels]
    """Annotations to train on, one item per file. `Labels.truth`, which only evaluations need, is None."""
    val: list[Labels]
    """Annotations to evaluate on, one item per file. If it is empty, the run is not evaluated."""
    problems: tuple[str, ...]
    """One line for each refused annotation, and for each data set that is not evaluated because its file is missing."""
    samples: SampleSet
    """The people of `labels` as training samples."""
    order: Order
    """The samples of each optimizer step."""
    updates: int
    """Number of optimizer steps of the whole run, also if it resumes; 2 in a dry run."""


def read_inputs(config: TrainConfig, world: World) -> Inputs:
    """Check the options and the output folder, and read the annotations. Every process of the run must call this.

    Raises:
        ValueError, OSError: the inputs cannot be used: wrong options, a folder that already holds a run, or unusable
            annotations. If one process fails, the others raise ValueError with its message.
    """
    world.agree(lambda: _check_processes(config, world))
    resumes = world.gather(world.agree(lambda: world.first and _resumes(config)))[0]
    return world.agree(lambda: _read(config, resumes))


def _check_processes(config: TrainConfig, world: World) -> None:
    """Check that the batch can be divided among the processes so that each has a sample in every micro-batch.

    Raises:
        ValueError: the batch cannot be divided so, or the config asks for FSDP in a single process.
    """
    if config.batch_size < world.size:
        raise ValueError(
            f"got batch_size={config.batch_size} for {world.size} processes, expected at least one sample per process"
        )
    smallest, largest = config.batch_size // world.size, math.ceil(config.batch_size / world.size)
    if smallest < math.ceil(largest / (config.micro_batch or largest)):
        raise ValueError(
            f"got --batch-size {config.batch_size} and --micro-batch {config.micro_batch} for {world.size} processes, "
            f"which leaves some micro-batches empty; choose a batch size that is a multiple of {world.size}"
        )
    if config.parallel == "fsdp" and world.size == 1:
        raise ValueError("got --parallel fsdp in a single process, expected several processes: start with torchrun")


def _resumes(config: TrainConfig) -> bool:
    """Return whether to resume the run in `config.out`.

    If the run belongs to the torchrun job of this process (the file `job` names it), torchrun has restarted it. Such a
    run resumes if it has saved a state, else it starts again, whatever the config says. Otherwise `config.resume`
    decides.

    Raises:
        ValueError: the folder holds another run, and neither `config.resume` nor `config.overwrite` is set.
    """
    file = config.out / "job"
    if job() and file.is_file() and file.read_text(encoding="utf-8") == job():
        return bool(States(config.out / "states").files())
    check_free(config.out, config)
    return config.resume


def _read(config: TrainConfig, resumes: bool) -> Inputs:
    """Read and check all annotations, and build the sample order.

    Contains no collectives, so that a failure in one process cannot leave the others waiting.

    Raises:
        ValueError, OSError: a file is missing or unusable, or an evaluation would not be possible.
    """
    official = config.official_boxes, config.mpii_stretch
    labels = [adjusted(read_labels(*source), *official) for source in config.sources("train")]
    for one in labels:
        one.truth = None  # large, and needed by evaluations only
    sources, missing = config.sources("val"), []
    if not config.val and config.val_tasks is None:  # the user did not ask for them, so missing files are no error
        gone = [source for source in sources if not source[1].is_file()]
        missing = [f"{file}: no such file, so {own.name} is not evaluated" for own, file, _ in gone]
        sources = [source for source in sources if source not in gone]
    val = [adjusted(read_labels(*source), *official) for source in sources]
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
