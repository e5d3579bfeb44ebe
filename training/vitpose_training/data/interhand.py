"""Read InterHand2.6M: project the 3D joints of each hand into the image of a calibrated camera.

Source: docs/numerics.md 3.1, 7.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitpose_fast.coco import image_row
from vitpose_fast.problems import first_of, shown
from vitpose_fast.rows import LIMIT, Row, check_rows, id_of, read_json
from vitpose_training.data.common import image_paths, numbers
from vitpose_training.data.people import DataSet, Labels, Layout, Person

HANDS = ("right", "left")  # in the order of the file
JOINTS = 21  # per hand; the last one, the wrist, is the root
MOST_TOO_FEW = 11  # a hand is used if it has more valid joints than this
PADDING = 1.5
_SUFFIX = "_data.json"
_CHUNK = 8192  # annotations projected at a time, about 50 MB
_REASONS = (  # why a hand is refused, in the order of `reasons` in `_hands`
    "has a joint behind the camera",
    f"has a joint further than {LIMIT:g} pixels from the image",
    "has its valid joints in one row or column",
    "lies outside the image",
)


class _Table:
    """Arrays by key (capture, name), each read and checked when it is first needed.

    The name is the name of a camera or the index of a frame, as a string.

    Args:
        read: Reads the array of a key; raises ValueError if the entry is missing or damaged.
    """

    def __init__(self, read: Callable[[str, str], np.ndarray]) -> None:
        self.read = read
        self.rows: list[np.ndarray] = []
        self.found: dict[tuple[str, str], int | str] = {}

    def index(self, capture: str, what: str) -> int:
        """Return the index in `rows` of the array of key (capture, what).

        Raise ValueError if the entry is missing or damaged. Every further call with this key raises the same message.
        """
        key = (capture, what)
        if key not in self.found:
            try:
                self.rows.append(self.read(*key))
                self.found[key] = len(self.rows) - 1
            except ValueError as error:
                self.found[key] = str(error)
        place = self.found[key]
        if isinstance(place, str):
            raise ValueError(place)
        return place


def read_interhand(data_set: DataSet, file: Path, folder: Path) -> Labels:
    """Read single hands from `X_data.json` and its companions `X_camera.json` and `X_joint_3d.json` in the same folder.

    As in the official loader, a hand is used if its root (the wrist) is valid and it has more than 11 valid joints,
    including the root. Any other hand with a valid joint counts as unlabeled, and so does an annotation without a valid
    joint. A hand that would be used is refused and listed in `Labels.problems` if a valid joint is behind the camera or
    more than 1e6 pixels from the image, or if the box is empty or outside the image.

    The box of a hand is the tight box of its valid joints, and its crop has padding 1.5. `annotation_id` is "ID right"
    or "ID left", where ID is the id of the annotation. `Labels.truth` is None.

    Args:
        data_set: The data set of the file.
        file: The path of `X_data.json`.
        folder: The folder that image names are relative to.

    Raises:
        ValueError: If one of the three files is missing or is not JSON of the expected form, if the name of `file` does
            not end in "_data.json", or if no annotation is undamaged.
    """
    data, name = read_json(file), str(file)
    if not file.name.endswith(_SUFFIX):
        raise ValueError(f"{name}: expected a file called ..{_SUFFIX} beside its .._camera.json and .._joint_3d.json")
    for key in ("images", "annotations"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise ValueError(f"{name}: no list {key!r}, expected InterHand2.6M annotations")
    companion = {kind: _companion(file, kind) for kind in ("camera", "joint_3d")}
    cameras = _Table(lambda *key: _camera(*companion["camera"], *key))
    frames = _Table(lambda *key: _frame(*companion["joint_3d"], *key))
    images, problems = check_rows(data["images"], "image", name, _image, unique=True)
    by_id = {image["id"]: image for image in images}
    rows, damaged = check_rows(
        data["annotations"], "annotation", name, lambda row: _annotation(row, by_id, cameras, frames), unique=True
    )
    problems += damaged
    if not rows:
        raise ValueError(f"{name}: no usable annotation among {len(data['annotations'])}{first_of(problems, name)}")
    paths = dict(zip(by_id, image_paths(folder, [image["file_name"] for image in images])))
    labels = Labels(data_set, [], None, len(images), problems=problems)
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        labels.people += _hands(chunk, np.stack(cameras.rows), np.stack(frames.rows), paths, name, labels)
    return labels


def _companion(file: Path, kind: str) -> tuple[dict[str, Any], str]:
    """Read the companion `X_{kind}.json` of `X_data.json`.

    Return its content, a dict by capture, and its file name. Raise ValueError if the file is missing, is not JSON, or
    is not an object.
    """
    path = file.with_name(f"{file.name.removesuffix(_SUFFIX)}_{kind}.json")
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is {shown(content)}, expected an object with InterHand2.6M's captures")
    return content, path.name


def _image(row: Row) -> Row:
    return image_row(row) | {key: str(id_of(row, key)) for key in ("capture", "camera", "frame_idx")}


def _annotation(row: Row, images: dict[Any, Row], cameras: _Table, frames: _Table) -> Row:
    own, image_id = id_of(row, "id"), id_of(row, "image_id")
    image = images.get(image_id)
    if image is None:
        raise ValueError(f"image_id {shown(image_id)} is not in images, or that image is damaged")
    valid = numbers(row, "joint_valid", (2 * JOINTS, 1), bools=True)
    if not ((valid == 0) | (valid == 1)).all():
        raise ValueError(f"joint_valid is {shown(row['joint_valid'])}, expected 0 or 1 for every joint")
    camera = cameras.index(image["capture"], image["camera"])
    frame = frames.index(image["capture"], image["frame_idx"])
    return {"id": own, "image": image, "valid": valid.reshape(2, JOINTS) > 0, "camera": camera, "frame": frame}


def _camera(captures: dict[str, Any], file: str, capture: str, camera: str) -> np.ndarray:
    """Return a camera as one array [16], see `project`.

    Args:
        captures: The content of `X_camera.json`: for each capture, the fields campos, camrot, focal and princpt, each
            a mapping from the name of a camera to its numbers.
        file: The name of that file, used in messages.
        capture: The capture.
        camera: The name of the camera.

    Raises:
        ValueError: If the capture or the camera is missing, a field has the wrong shape or is not finite, `camrot` is
            not orthogonal (within 1e-3), or a focal length is not positive.
    """
    own = captures.get(capture)
    if not isinstance(own, dict):
        raise ValueError(f"capture {shown(capture)} is not in {file}")
    found = {}
    for key, shape in {"campos": (3,), "camrot": (3, 3), "focal": (2,), "princpt": (2,)}.items():
        where, by_camera = f"camera {shown(camera)} of capture {shown(capture)} in {file}", own.get(key)
        if not isinstance(by_camera, dict) or camera not in by_camera:
            raise ValueError(f"{where} has no {key}")
        try:
            found[key] = numbers({key: by_camera[camera]}, key, shape)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    rotation = found["camrot"]
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3):
        raise ValueError(f"{where}: camrot is {shown(rotation.tolist())}, expected a rotation matrix")
    if (found["focal"] <= 0).any():
        raise ValueError(f"{where}: focal is {shown(found['focal'].tolist())}, expected two numbers > 0")
    return np.concatenate([part.ravel() for part in found.values()])


def _frame(captures: dict[str, Any], file: str, capture: str, frame: str) -> np.ndarray:
    """Return the joints of both hands in one frame, [42, 3] in mm in world coordinates: right hand, then left hand.

    `captures` is the content of `X_joint_3d.json`, {capture: {frame: {"world_coord": [42][3]}}}, and `file` its name,
    used in messages. Raise ValueError if the frame is missing or `world_coord` is not 42 x 3 finite numbers up to 1e6.
    """
    own = captures.get(capture)
    joints = own.get(frame) if isinstance(own, dict) else None
    where = f"frame {shown(frame)} of capture {shown(capture)}"
    if not isinstance(joints, dict):
        raise ValueError(f"{where} is not in {file}")
    try:
        return numbers(joints, "world_coord", (2 * JOINTS, 3))
    except ValueError as error:
        raise ValueError(f"{where} in {file}: {error}") from None


def project(world: np.ndarray, camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project joints from world coordinates to image pixels (docs/numerics.md 7.3).

    n is the number of frames, each with its own camera, and J the number of joints in a frame.

    Args:
        world: Joints [n, J, 3] in mm, in world coordinates.
        camera: Cameras [n, 16]: position [3] in mm in world coordinates, rotation from world to camera coordinates
            [3, 3] in row-major order, focal length [2] (x, y) and principal point [2] (x, y) in pixels.

    Returns:
        Joints [n, J, 2] (x, y) in pixels, and depths [n, J] in mm along the optical axis, positive in front of the
        camera.
    """
    position, rotation = camera[:, None, :3], camera[:, 3:12].reshape(-1, 3, 3)
    seen = (world - position) @ rotation.transpose(0, 2, 1)
    depth = seen[..., 2]
    return seen[..., :2] / (depth + 1e-8)[..., None] * camera[:, None, 12:14] + camera[:, None, 14:16], depth


def _hands(
    rows: Sequence[Row], cameras: np.ndarray, frames: np.ndarray, paths: dict[Any, Path], name: str, labels: Labels
) -> Iterator[Person]:
    """Yield the used hands of a chunk of annotations.

    Unlabeled hands are added to `labels.unlabelled`, and refused hands to `labels.problems` (see `read_interhand`).

    Args:
        rows: The annotations, as returned by `_annotation`.
        cameras: One row of 16 numbers per camera (see `project`), which the field `camera` of an annotation indexes.
        frames: The joints [42, 3] of each frame, which the field `frame` of an annotation indexes.
        paths: The path of each image by its id.
        name: The name of the annotation file, used in messages.
        labels: The labels to update.
    """
    valid = np.stack([row["valid"] for row in rows])  # [n, 2, 21]
    sizes = np.array([(row["image"]["width"], row["image"]["height"]) for row in rows])
    points, depth = project(frames[[row["frame"] for row in rows]], cameras[[row["camera"] for row in rows]])
    points, depth = points.reshape(*valid.shape, 2), depth.reshape(valid.shape)
    used = valid[..., -1] & (valid.sum(-1) > MOST_TOO_FEW)
    present = valid.any(-1)
    labels.unlabelled += int((present & ~used).sum() + (~present.any(-1)).sum())
    mask = valid[..., None]
    low = np.where(mask, points, np.inf).min(-2)
    high = np.where(mask, points, -np.inf).max(-2)  # [n, 2, 2]
    reasons = np.stack(
        [
            (valid & (depth <= 0)).any(-1),
            (np.abs(np.where(mask, points, 0)) > LIMIT).any((-1, -2)),
            (high <= low).any(-1),
            (high < 0).any(-1) | (low > sizes[:, None] - 1).any(-1),
        ]
    )
    keypoints = np.where(mask, points, 0).astype(np.float32)
    visible = valid.astype(np.float32)
    for i, side in zip(*(axis.tolist() for axis in np.nonzero(used))):
        row, image = rows[i], rows[i]["image"]
        if reasons[:, i, side].any():
            reason = _REASONS[int(reasons[:, i, side].argmax())]
            size = f"{image['width']}x{image['height']}"
            labels.problems.append(
                f"{name}: annotation (id {shown(row['id'])}): the {HANDS[side]} hand {reason}, expected it in the"
                f" {size} image of camera {image['camera']}"
            )
            continue
        x, y = low[i, side].tolist()
        right, bottom = high[i, side].tolist()
        yield Person(
            image=paths[image["id"]],
            image_id=image["id"],
            annotation_id=f"{row['id']} {HANDS[side]}",
            category_id=1,
            box=(x, y, right - x, bottom - y),
            keypoints=keypoints[i, side],
            visible=visible[i, side],
            source=name,
            image_size=(image["height"], image["width"]),
            padding=PADDING,
        )


INTERHAND_LAYOUT = Layout(read_interhand)
