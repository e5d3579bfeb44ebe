"""Average precision (AP) of keypoints: COCO, CrowdPose and COCO-WholeBody (docs/numerics.md 7.1).

pycocotools computes the numbers. This module checks ground truth and results first.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vitpose_fast.coco import check_annotations
from vitpose_fast.keypoints import KEYPOINT_SETS, KeypointSet
from vitpose_fast.keypoints import keypoint_set as find_keypoint_set
from vitpose_fast.problems import shown
from vitpose_fast.rows import Row, is_number, read_json
from vitpose_training.data.people import Labels, Metric, joined

STATS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
CROWD_LIMITS = (0.2, 0.8)  # an image is easy if its crowdIndex is below 0.2, hard if it is at least 0.8, else medium
PARTS = {  # slices of the 133 whole-body keypoints
    "body": slice(0, 17),
    "foot": slice(17, 23),
    "face": slice(23, 91),
    "lefthand": slice(91, 112),
    "righthand": slice(112, 133),
    "whole": slice(0, 133),
}


def evaluate_coco(
    truth_json: Any, results: Any, keypoint_set: str | KeypointSet, use_area: bool = True
) -> dict[str, float]:
    """Compute the ten COCO keypoint numbers (docs/numerics.md 7.1).

    As in pycocotools, categories are matched separately and their numbers averaged.

    Equal results of the same image with the same `annotation_id` (or `id`, if there is no `annotation_id`) count once,
    because samplers pad their last batch with repeated samples. Results without an id all count, as in pycocotools: a
    repeated result cannot be distinguished from two people with equal poses, and some published numbers include such
    poses.

    Args:
        truth_json: COCO annotations, a file or a dict, see `vitpose_fast.coco.check_annotations`.
        results: COCO keypoint results, a file or a list. Each has `image_id`, `keypoints` (a flat list x, y, score,
            ...) and `score`. `category_id` may be missing if the ground truth has a single category.
        keypoint_set: The keypoint set: its name, the path of a .json file or the set itself.
        use_area: If True, OKS uses the annotated `area`. If False, or for an annotation without `area`, it uses 0.53
            times the area of the annotated box.

    Returns:
        AP, AP50, AP75, APM, APL, AR, AR50, AR75, ARM and ARL by name. A number is 0 if no person that it covers was
        found, and -1 if it covers no person, such as APL without large people.

    Raises:
        FileNotFoundError: If the .json file of the keypoint set does not exist.
        ValueError: If the keypoint set is unknown or has no sigmas, if a file is unreadable, if any row of the ground
            truth is damaged, if `results` is not a list of dicts, or if a result holds NaN or infinity, has a wrong
            number of keypoints, has an unknown image or category, or differs from another result with the same id.
    """
    evaluation = _Evaluation(truth_json, results, find_keypoint_set(keypoint_set), use_area)
    return dict(zip(STATS, evaluation.stats(), strict=True))


def evaluate_crowdpose(truth_json: Any, results: Any) -> dict[str, float]:
    """Compute CrowdPose's nine numbers: AP, AP50, AP75, AR, AR50, AR75, and the AP of easy, medium and hard images.

    An image is easy if its `crowdIndex` is below 0.2, hard if it is at least 0.8, and medium in between
    (docs/numerics.md 7.1). OKS uses 0.53 times the area of the annotated box.

    Args:
        truth_json: As in `evaluate_coco`. Every image also needs a `crowdIndex`.
        results: As in `evaluate_coco`.

    Returns:
        The numbers by name; the AP of easy, medium and hard images are called APE, APM and APH. A number is 0 or -1 as
        in `evaluate_coco`.

    Raises:
        ValueError: As in `evaluate_coco`, or if the `crowdIndex` of an image is missing or is not a number.
    """
    evaluation = _Evaluation(truth_json, results, KEYPOINT_SETS["crowdpose"], use_area=False)
    crowd = []
    for image in evaluation.truth["images"]:
        own = image.get("crowdIndex")
        if not is_number(own):
            raise ValueError(f"ground truth: image {shown(image['id'])} has crowdIndex {shown(own)}, expected a number")
        crowd.append(own)
    all_stats = dict(zip(STATS, evaluation.stats(), strict=True))
    out = {name: all_stats[name] for name in ("AP", "AP50", "AP75", "AR", "AR50", "AR75")}
    level = np.digitize(crowd, CROWD_LIMITS)
    for i, name in enumerate(("APE", "APM", "APH")):
        out[name] = evaluation.stats([n for n, own in enumerate(level, 1) if own == i])[0]
    return out


def evaluate_wholebody(truth_json: Any, results: Any) -> dict[str, float]:
    """Compute the COCO numbers of all 133 keypoints (AP, ..., ARL), and AP and AR of each part ("body AP", ...).

    Each part of `PARTS` is evaluated separately, with the sigmas of its keypoints (docs/numerics.md 7.3). The part
    "whole" is all keypoints. In each evaluation, people without a labeled keypoint in the part are ignored, and results
    without a keypoint in the part that scores above 0 are left out.

    Arguments and errors are as in `evaluate_coco`. In both arguments `keypoints` is a flat list of 133 times x, y, v,
    not the five lists of COCO-WholeBody's own files.

    Returns:
        The numbers by name, 0 or -1 as in `evaluate_coco`.
    """
    whole = KEYPOINT_SETS["wholebody"]
    checked = _Evaluation(truth_json, results, whole, use_area=True)
    by_part = {name: checked.of_part(part, _part_of(whole, part)).stats() for name, part in PARTS.items()}
    out = dict(zip(STATS, by_part["whole"], strict=True))
    return out | {f"{name} {k}": own[STATS.index(k)] for name, own in by_part.items() for k in ("AP", "AR")}


def _part_of(whole: KeypointSet, part: slice) -> KeypointSet:
    """Return the keypoint set of the keypoints in the slice `part` of `whole`, with names and sigmas only."""
    assert whole.sigmas is not None
    names, sigmas = whole.names[part], whole.sigmas[part]
    return replace(whole, names=names, sigmas=sigmas, flip_pairs=(), skeleton=(), upper_body=())


class _Evaluation:
    """Ground truth and results, checked and renumbered for pycocotools. The arguments are as in `evaluate_coco`.

    Images, categories, annotations and results get new ids from 1 on. pycocotools treats a match with an annotation of
    id 0 as no match, so ids must not start at 0. It ranks results with equal scores by image id, so the new image ids
    are in the order of the given ones (numbers before strings). Errors are as in `evaluate_coco`.
    """

    def __init__(self, truth: Any, results: Any, keypoint_set: KeypointSet, use_area: bool) -> None:
        if keypoint_set.sigmas is None:
            raise ValueError(f"{keypoint_set.name} has no OKS sigmas: AP is not defined for it")
        self.keypoint_set = keypoint_set
        name = str(truth) if isinstance(truth, (str, os.PathLike)) else "ground truth"
        self.truth, problems = check_annotations(_loaded(truth), keypoint_set, name)
        if problems:
            raise ValueError(f"{problems[0]} ({len(problems)} damaged in total)")
        self.truth["images"].sort(key=lambda image: (isinstance(image["id"], str), image["id"]))
        number = {image["id"]: n for n, image in enumerate(self.truth["images"], 1)}
        ids = [category["id"] for category in self.truth["categories"]] or [1]
        self.categories = {category: n for n, category in enumerate(sorted(ids, key=str), 1)}
        self.expected = [
            {
                **row,
                "id": n,
                "image_id": number[row["image_id"]],
                "category_id": self.categories[row["category_id"]],
                "area": row["area"] if use_area else 0.53 * row["bbox"][2] * row["bbox"][3],
            }
            for n, row in enumerate(self.truth["annotations"], 1)
        ]
        given = _loaded(results)
        if not isinstance(given, (list, tuple)):
            raise ValueError(f"results are a {type(given).__name__}, expected a list of COCO keypoint results")
        found: list[Row] = []
        seen: dict[Any, tuple[int, Row]] = {}
        for index, row in enumerate(given):
            own = self._checked(index, row, number)
            key = row.get("annotation_id", row.get("id"))
            if key is not None:
                first, other = seen.setdefault((own["image_id"], str(key)), (index, own))
                if first != index and other == own:
                    continue
                if first != index:
                    raise ValueError(
                        f"results {first} and {index} have the same id, {shown(key)}, but differ: remove one of them"
                    )
            found.append(own)
        self.found = [{**row, "id": n} for n, row in enumerate(found, 1)]
        self.images = len(number)

    def _checked(self, index: int, row: Any, number: dict[Any, int]) -> Row:
        """Check a result and return a copy with new ids, and box and area computed as pycocotools does.

        Box and area are the extent of the keypoints. Fields other than `image_id`, `category_id`, `keypoints` and
        `score` are dropped. `index` is the index of the result, used in messages, and `number` maps given to new image
        ids. Raise ValueError if the result is invalid, see `evaluate_coco`.
        """
        if not isinstance(row, dict):
            raise ValueError(f"result {index} is a {type(row).__name__}, expected a JSON object")
        image_id, triples, score = (row.get(key) for key in ("image_id", "keypoints", "score"))
        if not isinstance(image_id, (int, float, str)) or image_id not in number:
            raise ValueError(f"result {index} is for image {shown(image_id)}, which is not in the annotations")
        category = row.get("category_id", next(iter(self.categories)) if len(self.categories) == 1 else None)
        if not isinstance(category, (int, float, str)) or category not in self.categories:
            valid = ", ".join(map(str, self.categories))
            which = f"result {index} (image {shown(image_id)})"
            raise ValueError(f"{which} has category_id {shown(category)}, expected one of {valid}")
        count = 3 * self.keypoint_set.num_keypoints
        if not isinstance(triples, (list, tuple)) or len(triples) != count:
            raise ValueError(f"result {index} (image {shown(image_id)}): expected a list of {count} keypoint numbers")
        if not all(is_number(v, float(np.finfo(np.float32).max)) for v in (score, *triples)):
            raise ValueError(f"result {index} (image {shown(image_id)}) holds NaN or infinite numbers")
        own = {"image_id": number[image_id], "category_id": self.categories[category], "score": score}
        return {**own, **_extent(list(triples))}

    def of_part(self, part: slice, keypoint_set: KeypointSet) -> _Evaluation:
        """Return an evaluation of the keypoints in the slice `part`, as in the official code of COCO-WholeBody.

        People without a labeled keypoint in the part are ignored. Results without a keypoint in the part that scores
        above 0 are left out. The area of a result is the extent of its body keypoints for every part.

        Args:
            part: A slice of the 133 keypoints.
            keypoint_set: The keypoint set of the part, see `_part_of`.
        """
        out = _Evaluation.__new__(_Evaluation)
        out.keypoint_set, out.truth, out.categories, out.images = keypoint_set, self.truth, self.categories, self.images
        cut = slice(3 * part.start, 3 * part.stop)
        out.expected = []
        for row in self.expected:
            own = row["keypoints"][cut]
            out.expected.append({**row, "keypoints": own, "num_keypoints": sum(v > 0 for v in own[2::3])})
        body = slice(0, 3 * PARTS["body"].stop)
        out.found = [
            {**row, **_extent(row["keypoints"][body]), "keypoints": row["keypoints"][cut]}
            for row in self.found
            if max(row["keypoints"][cut][2::3]) > 0
        ]
        return out

    def stats(self, images: Sequence[int] | None = None) -> list[float]:
        """Run pycocotools and return the ten numbers in the order of `STATS`.

        Args:
            images: The new ids (from 1 on) of the images to evaluate. None means all images. For an empty list every
                number is -1.
        """
        try:
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval
        except ImportError:
            raise ImportError("AP needs the package pycocotools: pip install pycocotools") from None
        if images is not None and not len(images):
            return [-1.0] * len(STATS)
        base = {
            "images": [{"id": n} for n in range(1, self.images + 1)],
            "categories": [{"id": n} for n in self.categories.values()],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            sides = []
            for annotations in (self.expected, self.found):
                side = COCO()
                copies = [dict(a) for a in annotations]  # because pycocotools changes them
                side.dataset = {**base, "annotations": copies}
                side.createIndex()
                sides.append(side)
            evaluation = COCOeval(*sides, "keypoints")
            evaluation.params.kpt_oks_sigmas = np.array(self.keypoint_set.sigmas)
            if images is not None:
                evaluation.params.imgIds = list(images)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return [float(value) for value in evaluation.stats]


def _extent(triples: list[float]) -> Row:
    """Return `keypoints` (the list itself), `bbox` [x, y, w, h] around all keypoints, and `area` w * h, as a dict.

    `triples` is a flat list x, y, v, ...
    """
    x, y = triples[0::3], triples[1::3]
    box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    return {"keypoints": triples, "bbox": box, "area": box[2] * box[3]}


def _loaded(given: Any) -> Any:
    return read_json(Path(given)) if isinstance(given, (str, os.PathLike)) else given


def score_coco(files: Sequence[Labels], results: list[Row]) -> dict[str, float]:
    """Run `evaluate_coco` on the labels of one data set, with the keypoint set and `use_area` of the data set."""
    own = files[0].data_set
    return evaluate_coco(joined(files)[1], results, own.keypoint_set, own.use_area)


def _score_crowdpose(files: Sequence[Labels], results: list[Row]) -> dict[str, float]:
    return evaluate_crowdpose(joined(files)[1], results)


def _score_wholebody(files: Sequence[Labels], results: list[Row]) -> dict[str, float]:
    return evaluate_wholebody(joined(files)[1], results)


COCO_METRIC = Metric(score_coco, headline="AP")
CROWDPOSE_METRIC = Metric(_score_crowdpose, headline="AP")
WHOLEBODY_METRIC = Metric(_score_wholebody, headline="AP")
