"""Evaluate a model on a data set: `python training/validate.py` or `vitpose-fast validate`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vitpose_fast.coco import read_detections
from vitpose_fast.device import pick_device
from vitpose_fast.files import make_folder, write_atomic
from vitpose_fast.geometry import box_to_center_scale
from vitpose_fast.images import open_images
from vitpose_fast.keypoints import KeypointSet
from vitpose_fast.models.vitpose import PoseModel
from vitpose_fast.predictor import PosePredictor
from vitpose_fast.problems import print_problems
from vitpose_fast.rows import Row
from vitpose_training.data.catalog import DATA_SETS, DataSet, data_set
from vitpose_training.data.people import Labels, Person, adjusted, joined
from vitpose_training.data.read import read_labels
from vitpose_training.distributed import World
from vitpose_training.evaluation.scores import check_can_evaluate, score, table
from vitpose_training.evaluation.suppression import suppress


@dataclass(frozen=True)
class ValidateConfig:
    """Options of an evaluation."""

    weights: str
    """Checkpoint in any supported format: a file, a folder or a hub id."""
    task: str | None = None
    """Task of the head to evaluate. Also selects the data set unless --data-set does. None means the only head."""
    data: Path = Path("data")
    """Root folder of all data sets, in their original layouts. Not used with --annotations and --images."""
    data_set: str | None = None
    """Data set to evaluate on, with the same keypoints as the task, such as ochuman. None means the task's own."""
    split: str = "val"
    """Split of the data set. Not used with --annotations and --images."""
    annotations: Path | None = None
    """Annotation file. None means the file of the split."""
    images: Path | None = None
    """Folder of the images of --annotations."""
    boxes: Path | None = None
    """COCO detections: a JSON list of image_id (or file_name), category_id, bbox, score. None means annotated boxes."""
    out: Path | None = None
    """Folder for results.json (metrics, mistakes by keypoint), keypoints.json (COCO results) and worst.png. None means
    that no files are written."""
    worst: int = 12
    """Largest number of people to draw in worst.png: those with the lowest OKS."""
    flip_test: bool = True
    """Average the heatmaps of each crop and its mirror image."""
    batch_size: int = 64
    """Number of crops per batch."""
    blur_kernel: int = 11
    """Size of the blur before decoding, in heatmap pixels. 11 suits heatmaps of 64x48 and larger."""
    official_boxes: bool = True
    """Make annotated boxes one pixel smaller, as the official loaders do (docs/numerics.md 3.1). Set as in training."""
    mpii_stretch: bool = True
    """Stretch MPII's square crops to the input, as in the official code (docs/numerics.md 6.6). Set as in training."""
    device: str | None = None
    """Device: cpu, cuda or cuda:N. None means CUDA if it is available."""

    def __post_init__(self) -> None:
        if (self.annotations is None) != (self.images is None):
            raise ValueError("got one of --annotations and --images, expected both: a file and its image folder")


def evaluate(
    model: PoseModel,
    sources: Iterable[tuple[Path, Path]],
    task: str | None = None,
    detections: Path | list[Row] | None = None,
    **options: Any,
) -> tuple[dict[str, float], list[Row], list[str]]:
    """Evaluate a model on annotation files of a task: read the files and call `evaluate_labels`.

    Args:
        model: The model.
        sources: Pairs of an annotation file, in the layout of the task's data set, and the folder of its images.
        task: The task of the head to evaluate. None means the only head of the model.
        detections: As in `evaluate_labels`.
        options: More arguments of `evaluate_labels`.

    Returns:
        Metrics, results and problems as in `evaluate_labels`. The problems begin with `Labels.problems` of the files.

    Raises:
        ValueError: If an annotation file is unusable or the task has no head, or as in `evaluate_labels`.
    """
    found = data_set(model.config.task(model.resolve_task(task)))
    labels = [read_labels(found, annotations, images) for annotations, images in sources]
    metrics, results, problems = evaluate_labels(model, labels, task, detections, **options)
    return metrics, results, [*(p for one in labels for p in one.problems), *problems]


def evaluate_labels(
    model: PoseModel,
    labels: Sequence[Labels],
    task: str | None = None,
    detections: Path | list[Row] | None = None,
    flip_test: bool = True,
    batch_size: int = 64,
    blur_kernel: int = 11,
    progress: bool = False,
    world: World | None = None,
    limit: int | None = None,
) -> tuple[dict[str, float], list[Row], list[str]]:
    """Evaluate a model on the labels of one data set.

    Several annotation files count as one data set; equal image ids in two files are different images. Images, boxes and
    detections that cannot be used are reported and left out, and people without a result count as missed.

    If `Metric.by_oks` is true, similar poses are suppressed before scoring (docs/numerics.md 7.1). With detections the
    returned results are those that remain. With annotated boxes suppression affects only the metrics, and the returned
    results include every person whose image and box can be used.

    Every process of `world` must call this. Each predicts the poses in a share of the images, and all return the same
    values. If the metric raises ValueError, every process does.

    Args:
        model: The model.
        labels: The labels of the annotation files, at least one.
        task: The task of the head to evaluate. None means the task with the name of the data set if the model has a
            head for it, else the only head of the model.
        detections: A file or a list of COCO detections, see `read_detections`. None means the annotated boxes.
        flip_test: Average the heatmaps of each crop and its mirror image.
        batch_size: The number of crops per batch.
        blur_kernel: The size of the blur before decoding, in heatmap pixels.
        progress: Show a progress bar.
        world: The processes that share the work. None means this process only.
        limit: For dry runs: evaluate only the first `limit` people or, with detections, the first `limit` images. All
            other people count as missed. None means no limit.

    Returns:
        The metrics by name; the results in COCO format, each with the `area` of the padded crop in px² and, with
        annotated boxes, the `annotation_id`; and one line for each problem with an image, a box or a detection.

    Raises:
        ValueError: If the model has no head for the task, if the head has other keypoints than the data set, if the
            detections are unusable (see `check_detections`), or if the metric cannot score.
    """
    own = labels[0].data_set
    if task is None and own.name in model.heads:
        task = own.name
    world = world or World(model.device)
    people, truth = joined(labels)
    padding, fix_aspect = (people[0].padding, people[0].fix_aspect) if people else (1.25, True)
    predictor = PosePredictor(
        model, flip_test, task, batch_size, blur_kernel=blur_kernel, padding=padding, fix_aspect=fix_aspect
    )
    if predictor.codec.keypoint_set.names != own.keypoint_set.names:
        head, count = predictor.codec.keypoint_set, own.keypoint_set.num_keypoints
        raise ValueError(
            f"the head {head.name} has {head.num_keypoints} keypoints, but {own.name} has {count} different ones"
        )
    problems: list[str] = []
    if detections is not None:
        rows_of = dict(list(_detected(labels, truth, detections, problems).items())[:limit])
    else:
        rows_of = {}
        for person in people[:limit]:
            rows_of.setdefault(person.image, []).append(_row(person))
    mine = list(rows_of.items())[world.rank :: world.size]
    given: list[list[Row]] = []

    def items() -> Iterator[tuple[Any, Any, Any]]:
        for index, pixels, rows in open_images(mine, problems):
            assert rows is not None
            given.append(rows)
            bar.update(index + 1 - bar.n)
            yield pixels, [row["bbox"] for row in rows], [row["score"] for row in rows]

    results: list[Row] = []
    with tqdm(total=len(mine), unit="image", disable=not progress) as bar:
        for index, poses in predictor.predict_many(items()):
            rows = given[index]
            _, scale = box_to_center_scale(poses.boxes, predictor.codec.image_size, padding, fix_aspect)
            for found, area, row in zip(poses.to_coco(""), scale.prod(1).tolist(), rows, strict=True):
                ids: Row = {k: row[k] for k in ("image_id", "category_id", "annotation_id") if k in row}
                results.append({**found, **ids, "area": area})
        bar.update(len(mine) - bar.n)
    results = [row for part in world.gather(results) for row in part]
    by_oks = own.metric.by_oks
    if by_oks and detections is not None:
        results = suppress(results, own.keypoint_set)
    problems = list(dict.fromkeys(p for part in world.gather(problems) for p in part))

    def metrics() -> dict[str, float]:
        return score(labels, suppress(results, own.keypoint_set) if by_oks and detections is None else results)

    by_rank = world.gather(world.agree(lambda: metrics() if world.first else {}))
    return by_rank[0], results, problems


def _row(person: Person) -> Row:
    """Return `Person.box` as a detection with score 1 and the ids of the person."""
    ids = {"image_id": person.image_id, "category_id": person.category_id, "annotation_id": person.annotation_id}
    return {"bbox": person.box, "score": 1.0, **ids}


def check_detections(labels: Sequence[Labels], detections: Path | list[Row]) -> None:
    """Check before training that `evaluate_labels` will accept these detections.

    Raises:
        ValueError: If there are several annotation files, if the data set is evaluated with annotated boxes only (MPII,
            InterHand), if the detections are unreadable, or if none of them is for an annotated image. An empty list of
            detections is accepted.
    """
    _detected(labels, joined(labels)[1], detections, [])


def _detected(
    labels: Sequence[Labels], truth: Any, detections: Path | list[Row], problems: list[str]
) -> dict[Path, list[Row]]:
    """Return the detections of each annotated image by image path, with `image_id` and `category_id` filled in.

    The default category is the first annotated one. Detections of other images or categories are dropped, and damaged
    detections are reported in `problems`. Errors are as in `check_detections`.
    """
    if len(labels) > 1:
        raise ValueError(f"got detections for {len(labels)} annotation files, expected a single file")
    if truth is None:
        raise ValueError(f"{labels[0].data_set.name} is evaluated with its annotated boxes, got detections")
    rows, damaged = read_detections(detections)
    problems += damaged
    by_id = {image["id"]: image for image in truth["images"]}
    id_of = {image["file_name"]: image["id"] for image in truth["images"]}
    categories = [category["id"] for category in truth["categories"]]
    out: dict[Path, list[Row]] = {}
    matched = 0
    for row in rows:
        image_id = row["image_id"] if "image_id" in row else id_of.get(row["file_name"])
        category = row.get("category_id", categories[0] if categories else 1)
        matched += image_id in by_id
        if image_id in by_id and (not categories or category in categories):
            found = {**row, "image_id": image_id, "category_id": category}
            out.setdefault(by_id[image_id]["path"], []).append(found)
    if rows and not matched:
        raise ValueError(f"none of the {len(rows)} detections is for one of the {len(by_id)} annotated images")
    return out


def _source(config: ValidateConfig, keypoint_set: KeypointSet) -> tuple[DataSet, Path, Path]:
    """Return data set, annotation file and image folder.

    A data set that the config selects by name gets the codec of `keypoint_set`, the keypoint set of the model's head.
    """
    found = data_set(config.data_set or keypoint_set)
    if config.data_set in DATA_SETS and found.keypoint_set.codec != keypoint_set.codec:
        found = replace(found, keypoint_set=replace(found.keypoint_set, codec=keypoint_set.codec))
    if config.annotations is not None and config.images is not None:
        return found, config.annotations, config.images
    return found, *found.split(config.data, config.split)


def main(args: list[str] | None = None) -> int:
    """Run `vitpose-fast validate`.

    Returns:
        The exit code: 1 if a damaged annotation, image or detection was left out, else 0. Problems go to stderr.
    """
    import tyro

    from vitpose_fast.checkpoints import load_model
    from vitpose_training.evaluation.mistakes import breakdown, count, pair
    from vitpose_training.evaluation.worst import draw_worst

    config = tyro.cli(ValidateConfig, prog="vitpose-fast validate", args=args, description=__doc__)
    device = pick_device(config.device)
    model = load_model(config.weights, task=config.task).to(device)
    task = model.resolve_task(config.task)
    labels = read_labels(*_source(config, model.config.task(task)))
    labels = adjusted(labels, config.official_boxes, config.mpii_stretch)
    check_can_evaluate([labels])
    print(labels.summary())
    metrics, results, problems = evaluate_labels(
        model,
        [labels],
        task,
        config.boxes,
        config.flip_test,
        config.batch_size,
        config.blur_kernel,
        progress=True,
    )
    code = print_problems([*labels.problems, *problems])
    print(table(metrics, labels.data_set.metric))
    keypoint_set, pairs = labels.data_set.keypoint_set, pair(labels, results)
    text, mistakes = breakdown(count(labels, pairs), keypoint_set)
    print(text)
    if config.out is not None:
        out = make_folder(config.out)
        found = {"weights": config.weights, "data": labels.summary(), "metrics": metrics, "mistakes": mistakes}
        write_atomic(out / "results.json", lambda p: p.write_text(json.dumps(found, indent=1), encoding="utf-8"))
        write_atomic(out / "keypoints.json", lambda p: p.write_text(json.dumps(results), encoding="utf-8"))
        drawn = draw_worst(pairs, keypoint_set, out / "worst.png", config.worst)
        print(f"wrote the poses of {len(results)} people to {out}, and drew the {drawn} worst")
    return code
