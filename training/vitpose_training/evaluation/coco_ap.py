"""COCO's average precision by pycocotools, with checks in front of it (SPEC 7.1), and its relatives for crowds and
whole bodies."""

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
CROWD_LIMITS = (0.2, 0.8)  # of crowdIndex: easy below, hard from there on
PARTS = {  # of the 133 whole-body keypoints
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
    """The ten COCO keypoint numbers (SPEC 7.1).

    Categories are matched apart and averaged, as pycocotools does. Rows of results with an `annotation_id` or `id` that
    came before in their image (the padding of a sampler) count once. Without ids every row counts, as in pycocotools:
    nothing tells a repeated row from two equal poses, and published numbers hold such poses.

    Args:
        truth_json: COCO annotations: a file or a dict, see `vitpose_fast.coco.check_annotations`.
        results: COCO keypoint results, a file or a list: `image_id`, `keypoints`, `score`, and `category_id` where the
            truth has several.
        keypoint_set: name, .json file or value.
        use_area: OKS by the annotated `area`, else by 0.53 times that of the box.

    Returns:
        AP AP50 AP75 APM APL AR AR50 AR75 ARM ARL; 0 where nothing was found, -1 where there is no ground truth.

    Raises:
        ValueError: a keypoint set without sigmas, damaged ground truth; results that are not finite, have another
            number of keypoints, name unknown images or categories, or have one id and differ.
    """
    evaluation = _Evaluation(truth_json, results, find_keypoint_set(keypoint_set), use_area)
    return dict(zip(STATS, evaluation.stats(), strict=True))


def evaluate_crowdpose(truth_json: Any, results: Any) -> dict[str, float]:
    """CrowdPose's nine numbers: AP AP50 AP75 AR AR50 AR75, and AP of easy, medium and hard images (APE, APM, APH).

    Images are told apart by `crowdIndex`: easy < 0.2 <= medium < 0.8 <= hard (SPEC 7.1). Arguments and errors as in
    `evaluate_coco`; areas are 0.53 times those of the boxes.

    Raises:
        ValueError: also an image without a crowdIndex.
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
    """COCO numbers of all 133 keypoints (AP, ..., ARL), and AP and AR of each part ("body AP", ..., "whole AR").

    Each part is evaluated alone, with its sigmas, on the people who have labelled keypoints there (SPEC 7.3), and
    on the results that have one there which scores above 0. Arguments and errors as in `evaluate_coco`; keypoints are
    lists of 133 x, y, v.
    """
    whole = KEYPOINT_SETS["wholebody"]
    checked = _Evaluation(truth_json, results, whole, use_area=True)
    by_part = {name: checked.of_part(part, _part_of(whole, part)).stats() for name, part in PARTS.items()}
    out = dict(zip(STATS, by_part["whole"], strict=True))
    return out | {f"{name} {k}": own[STATS.index(k)] for name, own in by_part.items() for k in ("AP", "AR")}


def _part_of(whole: KeypointSet, part: slice) -> KeypointSet:
    assert whole.sigmas is not None
    names, sigmas = whole.names[part], whole.sigmas[part]
    return replace(whole, names=names, sigmas=sigmas, flip_pairs=(), skeleton=(), upper_body=())


class _Evaluation:
    """Checked ground truth and results, numbered from 1 as pycocotools needs them (it takes a match with id 0 for none;
    equal scores count in the order of image ids)."""

    def __init__(self, truth: Any, results: Any, keypoint_set: KeypointSet, use_area: bool) -> None:
        if keypoint_set.sigmas is None:
            raise ValueError(f"{keypoint_set.name} has no OKS sigmas: AP is not defined for it")
        self.keypoint_set = keypoint_set
        name = str(truth) if isinstance(truth, (str, os.PathLike)) else "ground truth"
        self.truth, problems = check_annotations(_loaded(truth), keypoint_set, name)
        if problems:
            raise ValueError(f"{problems[0]} ({len(problems)} damaged in all)")
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
                        f"results {first} and {index} have one id, {shown(key)}, and differ: leave one of them out"
                    )
            found.append(own)
        self.found = [{**row, "id": n} for n, row in enumerate(found, 1)]
        self.images = len(number)

    def _checked(self, index: int, row: Any, number: dict[Any, int]) -> Row:
        """A result as pycocotools loads it: its area and box are those of the keypoints."""
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
        """The same with some of the keypoints, as in COCO-WholeBody's own code: people without labelled ones among them
        are ignored, results without one that scores above 0 left out; a result is as large as its body."""
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
        """The ten numbers, on some of the images (by number)."""
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

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
                copies = [dict(a) for a in annotations]  # the evaluation writes into them
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
    x, y = triples[0::3], triples[1::3]
    box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    return {"keypoints": triples, "bbox": box, "area": box[2] * box[3]}


def _loaded(given: Any) -> Any:
    return read_json(Path(given)) if isinstance(given, (str, os.PathLike)) else given


def score_coco(files: Sequence[Labels], results: list[Row]) -> dict[str, float]:
    """`evaluate_coco` of the files of one data set, with its keypoints and areas."""
    own = files[0].data_set
    return evaluate_coco(joined(files)[1], results, own.keypoint_set, own.use_area)


def _score_crowdpose(files: Sequence[Labels], results: list[Row]) -> dict[str, float]:
    return evaluate_crowdpose(joined(files)[1], results)


def _score_wholebody(files: Sequence[Labels], results: list[Row]) -> dict[str, float]:
    return evaluate_wholebody(joined(files)[1], results)


COCO_METRIC = Metric(score_coco, headline="AP")
CROWDPOSE_METRIC = Metric(_score_crowdpose, headline="AP")
WHOLEBODY_METRIC = Metric(_score_wholebody, headline="AP")
