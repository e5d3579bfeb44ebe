"""Evaluate a model on COCO-format annotations: `python training/validate.py`, `vitpose-fast validate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from vitpose_fast.files import write_atomic
from vitpose_fast.geometry import box_to_center_scale
from vitpose_fast.models.vitpose import ViTPose
from vitpose_fast.predictor import PosePredictor
from vitpose_fast.training.data import clipped_box, read_json
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
    """COCO detections (JSON list of image_id, category_id, bbox, score); None: the annotated boxes."""
    task: str | None = None
    """Which head; None: the only one."""
    out: Path | None = None
    """Write the results (COCO JSON) here."""
    flip_test: bool = True
    batch_size: int = 64
    device: str | None = None


def boxes_by_image(
    truth: dict[str, Any], detections: list[dict[str, Any]] | None
) -> dict[int, list[tuple[list, float]]]:
    """image id -> (box xywh, score) of every person: from detections, else from the annotations (crowds left out)."""
    sizes = {i["id"]: (i["width"], i["height"]) for i in truth["images"]}
    out: dict[int, list[tuple[list, float]]] = {i: [] for i in sizes}
    if detections is None:
        for annotation in truth["annotations"]:
            labelled = not annotation.get("iscrowd") and any(annotation.get("keypoints", ())[2::3])
            box = clipped_box(annotation["bbox"], *sizes[annotation["image_id"]]) if labelled else None
            if box is not None:
                out[annotation["image_id"]].append((list(box), 1.0))
        return out
    categories = {c["id"] for c in truth.get("categories", [])}
    for detection in detections:
        of_interest = not categories or detection.get("category_id", 1) in categories
        if detection["image_id"] in out and of_interest and detection["bbox"][2] > 0 and detection["bbox"][3] > 0:
            out[detection["image_id"]].append((detection["bbox"], detection["score"]))
    return out


def evaluate(
    model: ViTPose,
    sources: Iterable[tuple[Path, Path]],
    task: str | None = None,
    detections: list[dict[str, Any]] | None = None,
    flip_test: bool = True,
    batch_size: int = 64,
    progress: bool = False,
) -> tuple[dict[str, float], list[dict[str, Any]], list[str]]:
    """AP and AR of a model over annotation files: (metrics, results, reasons of images left out).

    Several files count as one data set, with images of their own. With detections, OKS non-maximum suppression is
    applied. A broken image is named and left out: its people count as missed.
    """
    predictor = PosePredictor(model, flip_test, task, batch_size)
    merged = merge_truths([(read_json(a), folder) for a, folder in sources])
    people = boxes_by_image(merged, detections)
    images = [i for i in merged["images"] if people[i["id"]]]
    items = [(Path(i["path"]), [b for b, _ in people[i["id"]]], [s for _, s in people[i["id"]]]) for i in images]
    failed: list[str] = []
    results: list[dict[str, Any]] = []
    category = merged["annotations"][0]["category_id"] if merged["annotations"] else 1
    bar = tqdm(total=len(items), unit="image", disable=not progress)
    for index, poses in predictor.predict_many(items, on_error=lambda _, error: failed.append(str(error))):
        _, scale = box_to_center_scale(poses.boxes, predictor.codec.image_size)
        for result, area in zip(poses.to_coco(images[index]["id"], category), scale.prod(1).tolist(), strict=True):
            results.append({**result, "area": area})
        bar.update(index + 1 - bar.n)
    bar.close()
    if detections is not None:
        results = suppress(results, predictor.codec.keypoints)
    return coco_keypoint_ap(merged, results, predictor.codec.keypoints), results, failed


def merge_truths(parts: list[tuple[dict[str, Any], Path]]) -> dict[str, Any]:
    """Several COCO dicts, each with its image folder, as one; ids are renumbered only where there are several."""
    merged: dict[str, Any] = {"images": [], "annotations": [], "categories": parts[0][0].get("categories", [])}
    for number, (data, folder) in enumerate(parts):
        offset = 0 if len(parts) == 1 else (number + 1) * 10**12
        for image in data["images"]:
            merged["images"].append({**image, "id": image["id"] + offset, "path": str(folder / image["file_name"])})
        for i, annotation in enumerate(data["annotations"]):
            own = {**annotation, "image_id": annotation["image_id"] + offset, "id": annotation.get("id", i) + offset}
            merged["annotations"].append({"iscrowd": 0, **own})
    return merged


def main(args: list[str] | None = None) -> int:
    import tyro

    from vitpose_fast.checkpoints import load_model

    config = tyro.cli(ValidateConfig, prog="vitpose-fast validate", args=args, description=__doc__)
    model = load_model(config.weights, task=config.task)
    model = model.to(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    detections = None
    if config.boxes is not None:
        detections = json.loads(config.boxes.read_text(encoding="utf-8"))
    metrics, results, failed = evaluate(
        model,
        [(config.annotations, config.images)],
        config.task,
        detections,
        config.flip_test,
        config.batch_size,
        progress=True,
    )
    for reason in failed:
        print(f"skipped: {reason}", file=sys.stderr)
    print("  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
    if config.out is not None:
        write_atomic(config.out, lambda p: p.write_text(json.dumps(results), encoding="utf-8"))
        print(f"{len(results)} people written to {config.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    from vitpose_fast.__main__ import run

    sys.exit(run(main))
