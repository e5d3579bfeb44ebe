"""Results of an evaluation to the numbers of each data set (SPEC 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitpose_fast.rows import Row
from vitpose_training.data.people import Labels, Person, all_people, by_data_set, points_of
from vitpose_training.evaluation.metrics import (
    aic_score,
    auc,
    epe,
    evaluate_coco,
    evaluate_crowdpose,
    evaluate_wholebody,
    pck,
    pckh_mpii,
)

SCORE = {"coco": "AP", "crowdpose": "AP", "wholebody": "AP", "pckh": "PCKh", "hand": "AUC"}  # metric -> its main number
_FAR = 1e7  # pixels: where a keypoint stands that was not found, beyond every threshold


def joined(labels: Sequence[Labels]) -> tuple[list[Person], Any]:
    """(people, truth) of several files of one data set as one; images and annotations of several are numbered anew."""
    if len(labels) == 1:
        return labels[0].people, labels[0].truth
    if labels[0].truth is None:
        return [replace(p, annotation_id=n) for n, p in enumerate(all_people(labels))], None
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    people: list[Person] = []
    for one in labels:
        images = {image["id"]: n for n, image in enumerate(one.truth["images"], len(truth["images"]) + 1)}
        rows = {row["id"]: n for n, row in enumerate(one.truth["annotations"], len(truth["annotations"]) + 1)}
        truth["images"] += [{**image, "id": images[image["id"]]} for image in one.truth["images"]]
        truth["annotations"] += [
            {**row, "id": rows[row["id"]], "image_id": images[row["image_id"]]} for row in one.truth["annotations"]
        ]
        listed = {category["id"] for category in truth["categories"]}
        truth["categories"] += [c for c in one.truth["categories"] if c["id"] not in listed]
        people += [replace(p, image_id=images[p.image_id], annotation_id=rows[p.annotation_id]) for p in one.people]
    return people, truth


def score(labels: Sequence[Labels], results: list[Row]) -> dict[str, float]:
    """The metrics of a data set (SPEC 7) for results as `evaluate_labels` makes them.

    Raises:
        ValueError: ground truth or results that cannot be evaluated, in one line.
    """
    own = labels[0].data_set
    people, truth = joined(labels)
    if own.metric == "pckh":
        return _pckh(labels, results)
    if own.metric == "hand":
        return _hands(people, results)
    if own.metric == "wholebody":
        return evaluate_wholebody(truth, results)
    if own.metric == "crowdpose":
        return evaluate_crowdpose(truth, results)
    metrics = evaluate_coco(truth, results, own.keypoints, own.use_area)
    if own.layout == "aic":
        metrics["AIC score"] = aic_score(_aic_truth(truth), _aic_results(results))
    return metrics


def _points(people: Sequence[Person], results: list[Row]) -> np.ndarray:
    """[N, K, 2] in the order of the people; far away where there is no result."""
    out = np.full((len(people), *people[0].keypoints.shape), _FAR)
    by_id = {p.annotation_id: i for i, p in enumerate(people)}
    for row in results:
        out[by_id[row["annotation_id"]]] = points_of(row)
    return out


def _hands(people: Sequence[Person], results: list[Row]) -> dict[str, float]:
    """PCK within 0.2 of the box, AUC up to 30 pixels, mean error in pixels of the keypoints that were found."""
    points = _points(people, results)
    truth, mask = np.stack([p.keypoints for p in people]), np.stack([p.visible for p in people]) > 0
    size = np.array([max(p.box[2:]) for p in people])
    found = points[:, 0, 0] < _FAR
    return {
        "PCK": pck(points, truth, mask, 0.2, np.stack([size, size], 1)),
        "AUC": auc(points, truth, mask, 30.0),
        "EPE": epe(points[found], truth[found], mask[found]) if found.any() else -1.0,
    }


def _pckh(labels: Sequence[Labels], results: list[Row]) -> dict[str, float]:
    """PCKh of all entries of the file; those that could not be read count as missed."""
    mat = _mpii_truth(labels)
    points = np.full((labels[0].entries, 16, 2), _FAR)
    for row in results:
        points[int(row["annotation_id"])] = points_of(row) + 1
    return pckh_mpii(points, mat)


def _mpii_truth(labels: Sequence[Labels]) -> Path:
    """The file with MPII's head sizes, beside the annotations."""
    if len(labels) > 1:
        raise ValueError(f"got {len(labels)} files of MPII to evaluate on, expected one (with its mpii_gt_val.mat)")
    if not labels[0].people:
        raise ValueError("no person of MPII to evaluate on")
    mat = Path(labels[0].people[0].source).parent / "mpii_gt_val.mat"
    if not mat.is_file():
        raise ValueError(f"{mat}: no such file; PCKh needs MPII's head sizes beside the annotations")
    return mat


def _aic_truth(truth: dict[str, Any]) -> list[Row]:
    """AIC annotations in the original format (SPEC 7.3), which the official score is defined on."""
    rows: dict[Any, Row] = {}
    for image in truth["images"]:
        rows[image["id"]] = {"image_id": str(image["id"]), "keypoint_annotations": {}, "human_annotations": {}}
    for annotation in truth["annotations"]:
        points = np.array(annotation["keypoints"], dtype=float).reshape(-1, 3)
        points[:, 2] = np.array([3, 2, 1])[points[:, 2].astype(int)]  # unlabelled, occluded, visible
        x, y, w, h = annotation["bbox"]
        row, name = rows[annotation["image_id"]], f"human{annotation['id']}"
        row["keypoint_annotations"][name] = points.flatten().tolist()
        row["human_annotations"][name] = [x, y, x + w, y + h]
    return list(rows.values())


def _aic_results(results: list[Row]) -> list[Row]:
    rows: dict[Any, Row] = {}
    for i, result in enumerate(results):
        row = rows.setdefault(result["image_id"], {"image_id": str(result["image_id"]), "keypoint_annotations": {}})
        row["keypoint_annotations"][f"human{i}"] = result["keypoints"]
    return list(rows.values())


def check_can_evaluate(labels: Sequence[Labels]) -> None:
    """Refuse now what an evaluation would refuse after a training.

    Raises:
        ValueError: a keypoint set without OKS sigmas, ground truth or files that are of no use.
    """
    for group in by_data_set(labels).values():
        if not any(one.people for one in group):
            raise ValueError(f"nobody to evaluate on: {group[0].summary()}")
        try:
            score(group, [])
        except ValueError as error:
            files = ", ".join(dict.fromkeys(one.people[0].source for one in group if one.people))
            raise ValueError(f"{files}: cannot be evaluated on: {error}") from None


def table(metrics: dict[str, float], per_cent: bool = False) -> str:
    """Metrics in lines of up to six, in per cent; `per_cent`: they are already. -1, nothing to measure, stays."""

    def shown(name: str, value: float) -> str:
        if name == "EPE":
            return f"{value:.2f} px"
        return f"{value if per_cent or value < 0 else 100 * value:.1f}"

    cells = [f"{name} {shown(name, value)}" for name, value in metrics.items()]
    width = max(map(len, cells)) + 3
    return "\n".join("".join(c.ljust(width) for c in cells[i : i + 6]).rstrip() for i in range(0, len(cells), 6))
