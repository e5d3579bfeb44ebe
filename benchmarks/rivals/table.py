"""The systems that Table 12 and Fig. 1 of the ViTPose++ paper compare ViTPose with, and the figures published for them.

With the same random weights in every layer, HRNet's trunk, FastPose, TokenPose, TransPose and HRFormer (with its
position term set to zero) give the outputs of the authors' code up to float rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from benchmarks.rivals.count import binary_gmacs_without_attention, gmacs, hrnet_tool
from benchmarks.rivals.fastpose import FastPose
from benchmarks.rivals.hrformer import HRFormer
from benchmarks.rivals.hrnet import HRNet
from benchmarks.rivals.simple_baseline import SimpleBaseline
from benchmarks.rivals.tokenpose import TokenPoseL
from benchmarks.rivals.transpose import TransPoseH

Cells = dict[str, float | None]


@dataclass(frozen=True)
class Rival:
    """One row of the table.

    Attributes:
        name: name of the system, and its image size as height x width.
        build: makes the network, with 17 keypoints and random weights.
        image_size: (H, W).
        published_params_m: published number of parameters in 10^6.
        published_gmacs: the figure that `source` calls GFLOPs.
        source: where the two published figures are from.
        counting: (model, image_size) -> the multiply-adds as `source` counts them, to compare with `published_gmacs`.
        note: how the published figures were counted, and which of them do not agree with the network.
        tolerance: relative tolerance of the multiply-adds. Parameters must agree within 2 %.
        paper: the row in Table 12 of ViTPose++: params_m (10^6), fps, gflops, memory_m, ap. A value that the table does
            not give is None.
    """

    name: str
    build: Callable[[], nn.Module]
    image_size: tuple[int, int]
    published_params_m: float
    published_gmacs: float
    source: str
    note: str
    paper: Cells
    counting: Callable[[nn.Module, tuple[int, int]], float] = gmacs
    tolerance: float = 0.02


def _row(
    params_m: float | None = None,
    fps: float | None = None,
    gflops: float | None = None,
    memory_m: float | None = None,
    ap: float | None = None,
) -> Cells:
    return {"params_m": params_m, "fps": fps, "gflops": gflops, "memory_m": memory_m, "ap": ap}


_HRNET_COUNT = "GFLOPs as the tool of the HRNet repository prints them: multiply-adds in units of 2^30"
_DECONV_COUNT = _HRNET_COUNT + ", deconvolutions counted at the size of their output, 4 times their work"
_HRFORMER_COUNT = "The paper does not say how it counts; units of 2^30 without the products of attention fit all rows"

RIVALS: tuple[Rival, ...] = (
    Rival(
        name="SimpleBaseline-R50 256x192",
        build=partial(SimpleBaseline, 50),
        image_size=(256, 192),
        published_params_m=34.0,
        published_gmacs=8.9,
        source="HRNet paper, COCO val table",
        note=_DECONV_COUNT + ". Fig. 1 of ViTPose++ only.",
        paper=_row(),
        counting=hrnet_tool,
    ),
    Rival(
        name="SimpleBaseline-R152 256x192",
        build=partial(SimpleBaseline, 152),
        image_size=(256, 192),
        published_params_m=68.6,
        published_gmacs=15.7,
        source="HRNet paper, COCO val table",
        note=_DECONV_COUNT + ". ViTPose++ says 60 M, the size of the classifier ResNet-152 without the deconvolutions.",
        paper=_row(60, 829, 15.7, 3827, 73.5),
        counting=hrnet_tool,
    ),
    Rival(
        name="HRNet-W32 384x288",
        build=partial(HRNet, 32),
        image_size=(384, 288),
        published_params_m=28.5,
        published_gmacs=16.0,
        source="HRNet paper, COCO val table",
        note=_HRNET_COUNT + ".",
        paper=_row(29, 428, 16.0, 7049, 75.8),
        counting=hrnet_tool,
    ),
    Rival(
        name="HRNet-W48 384x288",
        build=partial(HRNet, 48),
        image_size=(384, 288),
        published_params_m=63.6,
        published_gmacs=32.9,
        source="HRNet paper, COCO val table",
        note=_HRNET_COUNT + ".",
        paper=_row(64, 309, 32.9, 7339, 76.3),
        counting=hrnet_tool,
    ),
    Rival(
        name="UDP HRNet-W48 384x288",
        build=partial(HRNet, 48),
        image_size=(384, 288),
        published_params_m=63.6,
        published_gmacs=32.9,
        source="HRNet paper, COCO val table",
        note=_HRNET_COUNT + ". UDP changes the targets and the decoding, not the network.",
        paper=_row(64, 309, 32.9, 7339, 77.2),
        counting=hrnet_tool,
    ),
    Rival(
        name="FastPose-R152 256x192",
        build=FastPose,
        image_size=(256, 192),
        published_params_m=83.5,
        published_gmacs=16.0,
        source="AlphaPose model zoo: the float32 weights of its 73.3 AP entry take 334 MB; GFLOPs: ViTPose++ Table 12",
        note="AlphaPose publishes no counts. ViTPose++ says 60 M, the size of the classifier ResNet-152; its GFLOPs "
        "agree with the network of 83 M.",
        paper=_row(60, 653, 16.0, 6013, 73.3),
    ),
    Rival(
        name="TokenPose-L/D24 256x192",
        build=TokenPoseL,
        image_size=(256, 192),
        published_params_m=27.5,
        published_gmacs=11.0,
        source="TokenPose paper, COCO val table",
        note=_HRNET_COUNT + ", linear layers as if they had as many inputs as there are tokens, attention not counted. "
        "With all products it is 12.2 * 10^9.",
        paper=_row(28, 602, 11.0, 3477, 75.8),
        counting=hrnet_tool,
    ),
    Rival(
        name="TransPose-H/A6 256x192",
        build=TransPoseH,
        image_size=(256, 192),
        published_params_m=17.5,
        published_gmacs=21.8,
        source="TransPose repository and paper, COCO tables",
        note="The authors' tool also counts BatchNorm, softmax, dropout, activations and sums, at 1 to 5 per element: "
        "0.4 * 10^9 and more, mostly in the softmax over 3072 tokens. In ViTPose++, its AP_M and AP_L are the values "
        "of the AR columns, and its speed equals the speed of HRNet-W48 384x288.",
        paper=_row(18, 309, 21.8, None, 75.8),
        tolerance=0.03,
    ),
    Rival(
        name="HRFormer-S 256x192",
        build=partial(HRFormer, 32),
        image_size=(256, 192),
        published_params_m=7.8,
        published_gmacs=2.8,
        source="HRFormer paper, COCO val table",
        note=_HRFORMER_COUNT + ". Fig. 1 of ViTPose++ only.",
        paper=_row(),
        counting=binary_gmacs_without_attention,
    ),
    Rival(
        name="HRFormer-B 256x192",
        build=partial(HRFormer, 78),
        image_size=(256, 192),
        published_params_m=43.2,
        published_gmacs=12.2,
        source="HRFormer paper, COCO val table",
        note=_HRFORMER_COUNT + ". With all products it is 13.9 * 10^9.",
        paper=_row(43, 158, 12.2, 4287, 75.6),
        counting=binary_gmacs_without_attention,
    ),
    Rival(
        name="HRFormer-B 384x288",
        build=partial(HRFormer, 78),
        image_size=(384, 288),
        published_params_m=43.2,
        published_gmacs=26.8,
        source="HRFormer paper, COCO val table",
        note=_HRFORMER_COUNT + ". With all products it is 30.5 * 10^9.",
        paper=_row(43, 78, 26.8, 7859, 77.2),
        counting=binary_gmacs_without_attention,
    ),
)


def rival(name: str) -> Rival:
    """Return the row of `RIVALS` with this name.

    Raises:
        ValueError: there is no such row. The message lists the valid names.
    """
    for row in RIVALS:
        if row.name == name:
            return row
    raise ValueError(f"unknown rival {name!r}; choose from {', '.join(r.name for r in RIVALS)}")


# The paper's rows of ViTPose; ViTPose++ with merged experts is the same network, and the paper repeats its speed.
VITPOSE: dict[str, Cells] = {
    "ViTPose-S 256x192": _row(22, 1439, 5.3, 3438, 73.8),
    "ViTPose-B 256x192": _row(86, 944, 17.1, 4589, 75.8),
    "ViTPose-L 256x192": _row(307, 411, 59.8, 5587, 78.3),
    "ViTPose-H 256x192": _row(632, 241, 122.9, 7293, 79.1),
    "ViTPose++-S 256x192": _row(22, 1439, 5.3, 3438, 75.8),
    "ViTPose++-B 256x192": _row(86, 944, 17.1, 4589, 77.0),
    "ViTPose++-L 256x192": _row(307, 411, 59.8, 5587, 78.6),
    "ViTPose++-H 256x192": _row(632, 241, 122.9, 7293, 79.4),
}
