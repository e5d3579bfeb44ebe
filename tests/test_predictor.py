"""PosePredictor: the poses do not depend on the batching, and errors name the bad input."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import vitpose_fast as vp
from vitpose_fast import functional as F
from vitpose_fast.frames import needed_rows
from vitpose_fast.geometry import box_to_center_scale


def photo(seed=0, height=60, width=80):
    """Return a random image, uint8 [height, width, 3], of blocks of 4x4 equal pixels."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = vp.create_model("vitpose++-tiny", tasks=("coco", "ap10k"), image_size=(64, 48), depth=2).eval()
    for head in model.heads.values():  # an untrained head gives nearly flat heatmaps, which hide differences
        torch.nn.init.normal_(head.final_layer.weight, std=0.5)
        for layer in head.deconv_layers:
            if isinstance(layer, torch.nn.ConvTranspose2d):
                torch.nn.init.normal_(layer.weight, std=0.05)
    return model


@pytest.fixture
def exact_model(model):
    """The model in float64.

    In float32, batches of different sizes differ by rounding (they are summed in other orders), which decoding would
    amplify.
    """
    return copy.deepcopy(model).double()


BOXES = [[5.0, 6.0, 30.0, 40.0], [40.0, 10.0, 20.0, 45.0], [-10.0, 20.0, 40.0, 70.0]]


def check_same(a: vp.Poses, b: vp.Poses, tolerance=1e-3):
    """Assert that two results have the same keypoints (`tolerance` in pixels) and scores."""
    torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(a.keypoints, b.keypoints, rtol=0, atol=tolerance)


def test_result_has_the_stated_shapes_and_is_on_the_cpu(model):
    poses = vp.PosePredictor(model, task="coco")(photo(), BOXES, [0.9, 0.8, 0.7])
    assert poses.keypoints.shape == (3, 17, 2) and poses.scores.shape == (3, 17) and poses.boxes.shape == (3, 4)
    assert (
        poses.box_scores.tolist() == pytest.approx([0.9, 0.8, 0.7]) and poses.keypoint_set is vp.KEYPOINT_SETS["coco"]
    )
    assert poses.keypoints.device.type == "cpu" and poses.keypoints.dtype == torch.float32


@pytest.mark.parametrize("task", ["coco", "ap10k"])
@pytest.mark.parametrize("flip_test", [False, True])
def test_equals_crop_model_and_decode_called_separately(model, task, flip_test):
    image, boxes = torch.from_numpy(photo()), torch.tensor(BOXES)
    keypoints = vp.KEYPOINT_SETS[task]
    crops = F.crop(image, boxes, (64, 48), codec=keypoints.codec)
    with torch.no_grad():
        heatmaps, flipped = model(crops, task), model(crops.flip(-1), task) if flip_test else None
    center, scale = box_to_center_scale(boxes, (64, 48))
    points, scores = F.heatmap_decode(
        heatmaps, keypoints.codec, flipped=flipped, flip_pairs=keypoints.flip_pairs, centers=center, scales=scale
    )
    poses = vp.PosePredictor(model, flip_test, task)(image, boxes)
    torch.testing.assert_close(poses.keypoints, points, rtol=0, atol=1e-3)
    torch.testing.assert_close(poses.scores, scores, rtol=0, atol=1e-5)


def test_batching_changes_nothing(exact_model):
    model = exact_model
    images = [photo(i, 60 + 4 * i, 80 - 4 * i) for i in range(4)]
    boxes = [BOXES, BOXES[:1], [], BOXES[1:]]
    alone = [vp.PosePredictor(model, task="coco")(i, b) for i, b in zip(images, boxes)]
    for batch_size in (1, 2, 64):
        together = vp.PosePredictor(model, task="coco", batch_size=batch_size)(images, boxes)
        assert [len(p) for p in together] == [3, 1, 0, 2]
        for a, b in zip(alone, together):
            check_same(a, b)


def test_paths_arrays_and_tensors_are_the_same(model, tmp_path):
    Image.fromarray(photo()).save(tmp_path / "a.png")
    predictor = vp.PosePredictor(model, task="coco")
    reference = predictor(photo(), BOXES)
    for image in (str(tmp_path / "a.png"), tmp_path / "a.png", Image.fromarray(photo()), torch.from_numpy(photo())):
        check_same(reference, predictor(image, np.array(BOXES)), tolerance=0)


def test_without_boxes_the_image_is_one_person(model):
    predictor = vp.PosePredictor(model, task="coco")
    check_same(predictor(photo()), predictor(photo(), [[0, 0, 80, 60]]), tolerance=0)
    assert len(predictor([photo(), photo(1)])) == 2


def test_training_mode_is_restored(model):
    model.train()
    vp.PosePredictor(model, task="coco")(photo())
    assert model.training
    model.eval()


def test_a_nan_in_one_head_channel_marks_that_keypoint_only(model):
    predictor = vp.PosePredictor(model, task="coco")
    clean = predictor(photo(), BOXES)
    bias = model.heads["coco"].final_layer.bias
    with torch.no_grad():
        old = bias[3].item()
        bias[3] = float("nan")
        dirty = predictor(photo(), BOXES)
        bias[3] = old
    assert dirty.keypoints[:, 3].isnan().all() and dirty.scores[:, 3].isnan().all()
    others = [i for i in range(17) if i != 3]
    assert torch.equal(dirty.keypoints[:, others], clean.keypoints[:, others])
    assert dirty.person_scores.isfinite().all() and dirty.to_coco(1)[0]["keypoints"][9:12] == [0, 0, 0]


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[5, 5, 0, 10]], r"box 0 is \[5.0, 5.0, 0.0, 10.0\], expected finite"),
        ([[5, 5, 10, 10], [9, 9, -4, 5]], "box 1 is"),
        ([[5, 5, float("nan"), 10]], "box 0 is"),
        ([[200, 5, 10, 10]], r"box 0 \[200.0, 5.0, 10.0, 10.0\] lies outside the 80x60 image"),
        ([[5, 5, 10]], r"boxes have shape \[1, 3\]"),
        ([[5, 5, 10, 10], [5]], "boxes are not an array of numbers with rows of equal length, got list"),
        ({"x": 5}, "boxes are not an array of numbers with rows of equal length, got dict"),
        ([[5, 5, 1e30, 10]], "box 0 is"),
        ([5, 5, 10, 10], r"boxes have shape \[4\], expected \[P, 4\]"),
    ],
)
def test_bad_boxes_are_reported(model, boxes, message):
    with pytest.raises(ValueError, match=message) as error:
        vp.PosePredictor(model, task="coco")(photo(), boxes)
    assert "\n" not in str(error.value)


def test_bad_calls_are_reported(model):
    predictor = vp.PosePredictor(model, task="coco")
    with pytest.raises(ValueError, match="got 1 boxes for 2 images"):
        predictor([photo(), photo()], [BOXES])
    with pytest.raises(ValueError, match="expected one finite number for each of 3 boxes"):
        predictor(photo(), BOXES, [1.0])
    with pytest.raises(ValueError, match=r"image 1: gone\.jpg: no such image file"):
        predictor([photo(), "gone.jpg"])
    with pytest.raises(ValueError, match="this model has heads for coco, ap10k; choose one with task="):
        vp.PosePredictor(model)
    with pytest.raises(ValueError, match="unknown task 'hands'; heads: coco, ap10k"):
        vp.PosePredictor(model, task="hands")
    with pytest.raises(ValueError, match="image is of type NoneType"):
        predictor(None)
    with pytest.raises(ValueError, match="box_scores are not an array of numbers"):
        predictor(photo(), BOXES, ["high"] * 3)
    with pytest.raises(ValueError, match="batch_size=0"):
        vp.PosePredictor(model, task="coco", batch_size=0)


def test_one_bad_image_among_many_is_skipped(model):
    failed = []
    items = [(photo(), None, None), ("gone.jpg", None, None), (photo(1), None, None)]
    found = vp.PosePredictor(model, task="coco").predict_many(items, on_error=lambda i, e: failed.append((i, str(e))))
    assert [index for index, _ in found] == [0, 2]
    assert failed == [(1, "gone.jpg: no such image file")]


def test_a_stream_gives_the_poses_of_each_frame_in_order(exact_model):
    model = exact_model
    frames = [(photo(i), BOXES[: i % 4]) for i in range(9)]
    alone = [vp.PosePredictor(model, task="coco")(frame, boxes) for frame, boxes in frames]
    predictor = vp.PosePredictor(model, task="coco", batch_size=4)
    read = []
    found = predictor.stream((read.append(i), frame)[1] for i, frame in enumerate(frames))
    first = next(found)
    assert len(read) < len(frames)  # frames are read lazily
    for a, b in zip([first, *found], alone, strict=True):
        check_same(a, b)
    scored = list(predictor.stream([(photo(), BOXES[:1], [0.5])]))
    assert scored[0].box_scores.tolist() == [0.5]
    with pytest.raises(ValueError, match=r"image 1: gone\.jpg: no such image file"):
        list(predictor.stream([(photo(), None), ("gone.jpg", None)]))


@pytest.mark.parametrize("flip_test", [False, True])
def test_a_frozen_model_predicts_what_the_model_does(model, flip_test):
    frozen = vp.freeze(model, "coco", torch.float32)
    expected = vp.PosePredictor(model, flip_test, "coco")(photo(), BOXES)
    check_same(vp.PosePredictor(frozen, flip_test)(photo(), BOXES), expected, tolerance=1e-2)


class OutOfMemory:
    """A model that raises `error` in its first `count` calls with more than `fits` crops. `sizes` lists all calls."""

    def __init__(self, model, fits, count, error):
        self.forward, self.fits, self.left, self.error = model.forward, fits, count, error
        self.sizes = []

    def __call__(self, images, task=None):
        self.sizes.append(len(images))
        if len(images) > self.fits and self.left:
            self.left -= 1
            raise self.error
        return self.forward(images, task)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_out_of_memory_drops_no_person_and_the_smaller_batch_is_kept(exact_model, monkeypatch, error, caplog):
    model = exact_model
    expected = vp.PosePredictor(model, task="coco")(photo(), BOXES * 5)
    broken = OutOfMemory(model, 4, 10**9, error)
    monkeypatch.setattr(model, "forward", broken)
    predictor = vp.PosePredictor(model, task="coco")
    check_same(predictor(photo(), BOXES * 5), expected, tolerance=1e-2)
    assert broken.sizes == [15, 7, 3, 3, 3, 3, 3] and "retrying with 3" in caplog.text
    broken.sizes.clear()
    check_same(predictor(photo(), BOXES * 2), vp.PosePredictor(model, task="coco")(photo(), BOXES * 2))
    assert broken.sizes[:2] == [3, 3]


def test_no_person_is_dropped_by_a_thousand_out_of_memory_errors(exact_model, monkeypatch):
    """Errors occur at random, also with a single person in the batch, as if another process held the memory."""
    model = exact_model
    expected = vp.PosePredictor(model, task="coco")(photo(), BOXES)
    forward, random = model.forward, np.random.default_rng(0)
    raised = 0

    def unlucky(images, task=None):
        nonlocal raised
        if raised < 1000 and random.random() < 0.7:
            raised += 1
            raise ERRORS[raised % 3]
        return forward(images, task)

    monkeypatch.setattr(model, "forward", unlucky)
    answered = 0
    while raised < 1000:
        poses = vp.PosePredictor(model, task="coco")(photo(), BOXES)
        check_same(poses, expected)
        answered += len(poses)
    assert answered >= 3 * 50


def test_an_error_caused_by_out_of_memory_is_recognized(model, monkeypatch):
    """The end of a CUDA graph capture fails if the captured code runs out of memory."""
    forward = model.forward

    def failing(images, task=None):
        if len(images) > 2:
            try:
                raise ERRORS[0]
            except RuntimeError as error:
                raise RuntimeError("capture_end failed") from error
        return forward(images, task)

    monkeypatch.setattr(model, "forward", failing)
    assert len(vp.PosePredictor(model, task="coco")(photo(), BOXES)) == 3


def test_a_person_that_never_fits_is_an_error_in_one_line(model, monkeypatch):
    monkeypatch.setattr(model, "forward", OutOfMemory(model, 0, 10**9, ERRORS[0]))
    with pytest.raises(
        MemoryError, match="out of memory on cpu with a single person, 64 times in a row; free"
    ) as error:
        vp.PosePredictor(model, task="coco")(photo(), BOXES)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(model, "forward", OutOfMemory(model, 0, 10**9, RuntimeError("shapes cannot be multiplied")))
    with pytest.raises(RuntimeError, match="shapes cannot"):
        vp.PosePredictor(model, task="coco")(photo(), BOXES)


@pytest.mark.parametrize("flip_test", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_a_nan_person_does_not_affect_the_others(model, monkeypatch, flip_test, dtype):
    used = model if dtype is None else vp.freeze(model, "coco", dtype)
    predictor = vp.PosePredictor(used, flip_test, "coco")
    clean = predictor(photo(), BOXES * 3)
    crop = type(predictor.codec).crop

    def poisoned(*args, **options):
        crops = crop(*args, **options)
        crops[4::9] = float("nan")  # the fifth of nine people, and its mirror image
        return crops

    monkeypatch.setattr(type(predictor.codec), "crop", poisoned)
    dirty = predictor(photo(), BOXES * 3)
    others = [i for i in range(9) if i != 4]
    assert dirty.keypoints[4].isnan().all() and dirty.scores[4].isnan().all()
    assert torch.equal(dirty.keypoints[others], clean.keypoints[others])
    assert torch.equal(dirty.scores[others], clean.scores[others])
    assert torch.equal(dirty.person_scores[others], clean.person_scores[others])


@settings(max_examples=60)
@given(
    x=st.floats(-60, 70), y=st.floats(-60, 55), width=st.floats(1, 150), height=st.floats(1, 150),
    codec=st.sampled_from(["udp", "msra"]), sampling=st.sampled_from(["float", "exact-cv4"]),
)  # fmt: skip
def test_a_crop_reads_only_the_uploaded_rows(x, y, width, height, codec, sampling):
    image, box = torch.from_numpy(photo()), torch.tensor([[x, y, width, height]], dtype=torch.float64)
    rows = needed_rows(box, (64, 48), 60)
    other = torch.full_like(image, 255) - image
    other[rows] = image[rows]
    options = dict(size=(64, 48), codec=codec, sampling=sampling)
    assert torch.equal(F.crop(image, box, **options), F.crop(other, box, **options))


def test_only_the_rows_of_the_people_are_uploaded():
    assert needed_rows(torch.zeros(0, 4), (64, 48), 60) == slice(0, 0)
    rows = needed_rows(torch.tensor([[30.0, 400, 20, 40], [90.0, 420, 10, 30]], dtype=torch.float64), (64, 48), 1080)
    assert 385 < rows.start < 400 and 440 < rows.stop < 460


@pytest.mark.cuda
@pytest.mark.parametrize("flip_test", [False, True])
def test_on_a_gpu_frames_may_be_on_any_device_and_there_is_one_synchronization(model, flip_test):
    import copy

    expected = vp.PosePredictor(model, flip_test, "coco")(photo(), BOXES)
    frozen = vp.freeze(copy.deepcopy(model).cuda(), "coco", torch.float32)
    predictor = vp.PosePredictor(frozen, flip_test)
    frame = torch.from_numpy(photo())
    for image in (frame, frame.cuda()):
        check_same(predictor(image, BOXES), expected, tolerance=1e-2)
    frames = [(frame, BOXES), (frame.cuda(), BOXES[:1])] * 4
    list(predictor.stream(frames))  # captures the graphs
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = list(predictor.stream(frames))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for poses in found[::2]:
        check_same(poses, expected, tolerance=1e-2)


def test_a_person_score_is_the_box_score_times_the_mean_of_its_keypoints(model):
    poses = vp.PosePredictor(model, task="coco")(photo(), BOXES, [1.0, 0.5, 0.0])
    usual = vp.PosePredictor(model, task="coco")(photo(), BOXES)
    assert usual.box_scores.tolist() == [1, 1, 1] and usual.person_scores.min() > 0.01
    torch.testing.assert_close(poses.person_scores, usual.person_scores * torch.tensor([1.0, 0.5, 0.0]))


def test_crops_are_cut_out_as_opencv_does_if_asked(model):
    image, boxes = torch.from_numpy(photo()), torch.tensor(BOXES)
    found = vp.PosePredictor(model, task="coco", sampling="exact-cv4")(image, boxes)
    with torch.no_grad():
        heatmaps = [model(F.crop(image, boxes, (64, 48), sampling), "coco") for sampling in ("exact-cv4", "float")]
    exact, usual = (maps.flatten(2).amax(2) for maps in heatmaps)
    torch.testing.assert_close(found.scores, exact, rtol=0, atol=1e-5)
    assert (exact - usual).abs().max() > 1e-3


def test_a_flip_test_without_flip_pairs_is_warned_of(caplog):
    for pairs, warned in (([], True), ([["left", "right"]], False)):
        keypoints = vp.KeypointSet.from_dict({"name": "pen", "names": ["left", "right", "tip"], "flip_pairs": pairs})
        model = vp.create_model("vitpose-tiny", tasks=[keypoints], image_size=(64, 48), depth=1)
        caplog.clear()
        vp.PosePredictor(model)
        assert caplog.text == ""
        vp.PosePredictor(model, flip_test=True)
        assert ("keypoint set pen, which has no flip pairs" in caplog.text) == warned
