"""Evaluate a model on any of the data sets: `python training/validate.py`, `vitpose-fast validate`."""

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
    """Options of one evaluation."""

    weights: str
    """A checkpoint of any format: file, folder or hub id."""
    task: str | None = None
    """Which head, and with it the data set; None: the only one."""
    data: Path = Path("data")
    """Root of all data sets, in their original layouts; unused where files are given."""
    data_set: str | None = None
    """Evaluate on another data set with the same keypoints, such as ochuman; None: that of the task."""
    split: str = "val"
    """Of the data set."""
    annotations: Path | None = None
    """Annotation file; None: the data set's own."""
    images: Path | None = None
    """Folder of its images."""
    boxes: Path | None = None
    """COCO detections: a JSON list of image_id (or file_name), category_id, bbox, score; None: the annotated boxes."""
    out: Path | None = None
    """Folder for results.json (metrics and mistakes by keypoint), keypoints.json (COCO results) and worst.png."""
    worst: int = 12
    """How many of the worst cases are drawn."""
    flip_test: bool = True
    batch_size: int = 64
    blur_kernel: int = 11
    """Blur before decoding; 11 is for heatmaps of 64x48 and more."""
    official_boxes: bool = True
    """As the model was trained: annotated boxes lose a pixel (SPEC 3.1)."""
    mpii_stretch: bool = True
    """As the model was trained: MPII's square crops are stretched (SPEC 6.6)."""
    device: str | None = None

    def __post_init__(self) -> None:
        if (self.annotations is None) != (self.images is None):
            raise ValueError("--annotations and --images go together: a file and the folder of its images")


def evaluate(
    model: PoseModel,
    sources: Iterable[tuple[Path, Path]],
    task: str | None = None,
    detections: Path | list[Row] | None = None,
    **options: Any,
) -> tuple[dict[str, float], list[Row], list[str]]:
    """Metrics of a model over annotation files of its task: (metrics, results, problems); see `evaluate_labels`.

    Args:
        sources: (annotation file, folder of its images), in the layout of the task's data set.
        task: which head, None: the only one.
        detections, options: as in `evaluate_labels`.

    Raises:
        ValueError: a file that is of no use, and what `evaluate_labels` refuses.
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
    """Metrics of a model over labels of one data set: (metrics, results, problems that came up).

    Several files count as one, with images of their own. For the OKS metrics similar poses are suppressed (SPEC 7.1):
    from the results with detections; with annotated boxes the results stay whole, the metrics leave them out. Images,
    boxes and detections that cannot be used are named and left out: their people count as missed. Several processes
    share the images; all of them get everything.

    Args:
        task: which head, None: that of the data set's name, else the only one.
        detections: a file or list of COCO detections, for one annotation file; None: the annotated boxes.
        limit: evaluate the first so many people only (the others count as missed): is everything in place?

    Raises:
        ValueError: several annotation files with detections, detections for a data set without, other keypoints than
            the head's.
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
        raise ValueError(f"the head {head.name} has {head.num_keypoints} keypoints, {own.name} has other {count}")
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
    metrics: dict[str, float] = {}
    if world.first:
        metrics = score(labels, suppress(results, own.keypoint_set) if by_oks and detections is None else results)
    metrics = world.gather(metrics)[0]
    return metrics, results, problems


def _row(person: Person) -> Row:
    ids = {"image_id": person.image_id, "category_id": person.category_id, "annotation_id": person.annotation_id}
    return {"bbox": person.box, "score": 1.0, **ids}


def check_detections(labels: Sequence[Labels], detections: Path | list[Row]) -> None:
    """Refuse now what `evaluate_labels` would refuse of a file of detections.

    Raises:
        ValueError: a file that is of no use for these labels.
    """
    _detected(labels, joined(labels)[1], detections, [])


def _detected(
    labels: Sequence[Labels], truth: Any, detections: Path | list[Row], problems: list[str]
) -> dict[Path, list[Row]]:
    """The detections of each annotated image, as far as they are of an annotated category."""
    if len(labels) > 1:
        raise ValueError(f"got detections for {len(labels)} annotation files, expected one file with them")
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
    found = data_set(config.data_set or keypoint_set)
    if config.data_set in DATA_SETS and found.keypoint_set.codec != keypoint_set.codec:
        found = replace(found, keypoint_set=replace(found.keypoint_set, codec=keypoint_set.codec))
    if config.annotations is not None and config.images is not None:
        return found, config.annotations, config.images
    return found, *found.split(config.data, config.split)


def main(args: list[str] | None = None) -> int:
    """`vitpose-fast validate`: what is damaged is named and left out, exit code 1."""
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
        print(f"{len(results)} people, the {drawn} worst of them drawn, written to {out}")
    return code
