"""Evaluate a model on COCO-format annotations: `python training/validate.py`, `vitpose-fast validate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vitpose_fast.coco import (
    Row,
    clipped_box,
    is_training_person,
    open_images,
    print_problems,
    read_annotations,
    read_detections,
)
from vitpose_fast.files import write_atomic
from vitpose_fast.geometry import box_to_center_scale
from vitpose_fast.keypoints import KeypointSet
from vitpose_fast.models.vitpose import ViTPose
from vitpose_fast.predictor import PosePredictor, pick_device
from vitpose_fast.training.metrics import coco_keypoint_ap, suppress


@dataclass(frozen=True)
class ValidateConfig:
    """Options of one evaluation."""

    weights: str
    """A checkpoint of any format: file, folder or hub id."""
    annotations: Path
    """COCO keypoint annotations."""
    images: Path
    """Folder of their images."""
    boxes: Path | None = None
    """COCO detections: a JSON list of image_id (or file_name), category_id, bbox, score; None: the annotated boxes."""
    task: str | None = None
    """Which head; None: the only one."""
    out: Path | None = None
    """Write the results (COCO JSON) here."""
    flip_test: bool = True
    batch_size: int = 64
    blur_kernel: int = 11
    """Blur before decoding; 11 is for heatmaps of 64x48 and more."""
    device: str | None = None


def people_by_image(truth: dict[str, Any], detections: list[Row] | None = None) -> dict[int | str, list[Row]]:
    """image id -> its people with `bbox` xywh, `score`, `category_id`, of checked annotations and detections.

    From detections, as far as they are of a category and an image of `truth`; else the annotated people, with the
    official loader's box.

    Raises:
        ValueError: there are detections, none of them for these images.
    """
    out: dict[Any, list[Row]] = {image["id"]: [] for image in truth["images"]}
    if detections is None:
        sizes = {image["id"]: (image["width"], image["height"]) for image in truth["images"]}
        for annotation in filter(is_training_person, truth["annotations"]):
            box = clipped_box(annotation["bbox"], *sizes[annotation["image_id"]])
            person = {"bbox": box, "score": 1.0, "category_id": annotation["category_id"]}
            out[annotation["image_id"]].append(person)
        return out
    ids = {image["file_name"]: image["id"] for image in truth["images"]}
    categories = [category["id"] for category in truth["categories"]]
    usual = categories[0] if categories else 1
    matched = [(d["image_id"] if "image_id" in d else ids.get(d["file_name"]), d) for d in detections]
    matched = [(image_id, d) for image_id, d in matched if image_id in out]
    if detections and not matched:
        raise ValueError(f"none of the {len(detections)} detections is for one of the {len(out)} annotated images")
    for image_id, detection in matched:
        category = detection.get("category_id", usual)
        if not categories or category in categories:
            out[image_id].append({**detection, "category_id": category})
    return out


def evaluate(
    model: ViTPose,
    sources: Iterable[tuple[Path, Path]],
    task: str | None = None,
    detections: Path | list[Row] | None = None,
    flip_test: bool = True,
    batch_size: int = 64,
    blur_kernel: int = 11,
    progress: bool = False,
) -> tuple[dict[str, float], list[Row], list[str]]:
    """AP and AR of a model over annotation files: (metrics, results, problems).

    Several files count as one data set, with images of their own. With detections, OKS non-maximum suppression is
    applied. Damaged annotations, detections and images, and boxes outside of their image, are named and left out: the
    people of a broken image count as missed.

    Args:
        sources: (annotation file, folder of its images).
        detections: a file or list of COCO detections, for one annotation file; None: the annotated boxes.

    Raises:
        ValueError: a file that is of no use, several annotation files with detections, a task without OKS sigmas.
    """
    predictor = PosePredictor(model, flip_test, task, batch_size, blur_kernel=blur_kernel)
    keypoints = predictor.codec.keypoints
    sources = list(sources)
    truth, problems = read_truths(sources, keypoints)
    coco_keypoint_ap(truth, [], keypoints)  # what it refuses, it refuses now
    found = None
    if detections is not None:
        if len(sources) > 1:
            raise ValueError(f"got detections for {len(sources)} annotation files, expected one file with them")
        found, damaged = read_detections(detections)
        problems += damaged
    people = people_by_image(truth, found)
    images = [image for image in truth["images"] if people[image["id"]]]
    given: list[tuple[int | str, list[Row]]] = []

    def items() -> Iterator[tuple[Any, Any, Any]]:
        for index, pixels, rows in open_images(((i["path"], people[i["id"]]) for i in images), problems):
            assert rows is not None
            given.append((images[index]["id"], rows))
            bar.update(index + 1 - bar.n)
            yield pixels, [row["bbox"] for row in rows], [row["score"] for row in rows]

    results: list[Row] = []
    with tqdm(total=len(images), unit="image", disable=not progress) as bar:
        for index, poses in predictor.predict_many(items()):
            image_id, rows = given[index]
            _, scale = box_to_center_scale(poses.boxes, predictor.codec.image_size)
            for result, area, row in zip(poses.to_coco(image_id), scale.prod(1).tolist(), rows, strict=True):
                results.append({**result, "category_id": row["category_id"], "area": area})
        bar.update(len(images) - bar.n)
    if found is not None:
        results = suppress(results, keypoints)
    return coco_keypoint_ap(truth, results, keypoints), results, problems


def check_can_evaluate(keypoint_set: KeypointSet, sources: Iterable[tuple[Path, Path]]) -> None:
    """Refuse now what `evaluate` would refuse after a training.

    Raises:
        ValueError: a file that is of no use, or a keypoint set without OKS sigmas.
    """
    truth, _ = read_truths(list(sources), keypoint_set)
    coco_keypoint_ap(truth, [], keypoint_set)


def read_truths(sources: list[tuple[Path, Path]], keypoint_set: KeypointSet) -> tuple[dict[str, Any], list[str]]:
    """Annotation files, each with its image folder, as one: (annotations, problems); images get their `path`.

    Ids of images and annotations stay those of the file; those of several files are numbered anew.
    """
    merged: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    problems: list[str] = []
    for file, folder in sources:
        data, damaged = read_annotations(file, keypoint_set)
        problems += damaged
        number = {image["id"]: image["id"] for image in data["images"]}
        if len(sources) > 1:
            number = {image_id: n for n, image_id in enumerate(number, len(merged["images"]) + 1)}
        for image in data["images"]:
            merged["images"].append({**image, "id": number[image["id"]], "path": folder / image["file_name"]})
        for annotation in data["annotations"]:
            own = len(merged["annotations"]) + 1 if len(sources) > 1 else annotation["id"]
            merged["annotations"].append({**annotation, "id": own, "image_id": number[annotation["image_id"]]})
        listed = {category["id"] for category in merged["categories"]}
        merged["categories"] += [c for c in data["categories"] if c["id"] not in listed]
    return merged, problems


def main(args: list[str] | None = None) -> int:
    """`vitpose-fast validate`: what is damaged is named and left out, exit code 1."""
    import tyro

    from vitpose_fast.checkpoints import load_model

    config = tyro.cli(ValidateConfig, prog="vitpose-fast validate", args=args, description=__doc__)
    device = pick_device(config.device)
    model = load_model(config.weights, task=config.task).to(device)
    metrics, results, problems = evaluate(
        model,
        [(config.annotations, config.images)],
        config.task,
        config.boxes,
        config.flip_test,
        config.batch_size,
        config.blur_kernel,
        progress=True,
    )
    code = print_problems(problems)
    print("  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
    if config.out is not None:
        out = config.out
        write_atomic(out, lambda p: p.write_text(json.dumps(results), encoding="utf-8"))
        print(f"{len(results)} people written to {out}")
    return code


if __name__ == "__main__":
    from vitpose_fast.__main__ import run

    sys.exit(run(main))
