"""One random model in every implementation under test.

They are our frozen model and our module, official-style PyTorch, Hugging Face and, on a CPU, ONNX Runtime and OpenVINO.
"""

from __future__ import annotations

import copy

import torch

import vitpose_fast as vp
from benchmarks.harness import Contender, close
from benchmarks.models import frozen_contender, official_twin, random_model
from benchmarks.rivals import cpu_runtimes, hugging_face
from vitpose_kernels.packed import supports

HEAD = "coco"
INT8_TOLERANCE = 0.1  # relative error; 0.025 to 0.03 was seen, and each record has its own


class Lineup:
    """One random model in every implementation under test.

    The contenders map (images [B, 3, H, W], experts int64 [B]) to the heatmaps of the task `HEAD`.

    Args:
        name: name of the model for `create_model`.
        dtype: dtype of all implementations, except as `theirs_dtype` says.
        mixed: for ++ models: each sample uses the expert given in `experts`. Otherwise the model has no experts, and
            `experts` is ignored.
        theirs_dtype: dtype of the Hugging Face model. Default: `dtype`.

    Attributes:
        model: the float32 model whose weights all implementations have.
        frozen, module, official, theirs: the implementations; `theirs` is Hugging Face's, None if it is absent.
        others: on a CPU, the model frozen to PyTorch's plain operators and to int8, by name.
        absent: why Hugging Face's implementation is missing, or None.
    """

    def __init__(
        self,
        device: torch.device,
        name: str,
        dtype: torch.dtype,
        mixed: bool = False,
        theirs_dtype: torch.dtype | None = None,
    ) -> None:
        self.dtype = dtype
        self.model, self.mixed, self.cuda = random_model(name, device), mixed, device.type == "cuda"
        self.frozen = vp.freeze(self.model, None if mixed else HEAD, dtype)
        self.others: dict[str, vp.FrozenViTPose] = {}  # on a CPU, other ways to freeze the model
        if not self.cuda and not mixed:
            self.others["vitpose_fast frozen, plain operators"] = vp.freeze(self.model, HEAD, dtype, impl="reference")
            if supports("int8", dtype):
                self.others["vitpose_fast frozen, int8"] = vp.freeze(self.model, HEAD, dtype, int8=True)
        self.module = copy.deepcopy(self.model).to(dtype)
        self.official = official_twin(self.model, dtype)
        self.absent = hugging_face.why_missing()
        self.theirs = None if self.absent else hugging_face.twin(self.model).to(theirs_dtype or dtype)

    def ours(self, images, experts):
        if not self.mixed:
            return self.frozen(images, HEAD)

        def heatmaps(images, experts):
            return self.frozen.heads[HEAD](self.frozen.backbone(images, experts))

        return self.frozen.run("mixed", heatmaps, images, experts)

    def hugging_face(self, images, experts):
        return hugging_face.heatmaps(self.theirs, images, experts if self.mixed else None)

    def contenders(self, compiled: bool) -> list[Contender]:
        """Return the contenders, ours first.

        `compiled` adds Hugging Face's model under torch.compile, with default options and with max-autotune, which
        takes minutes.
        """

        def quiet(function):
            return torch.inference_mode()(function)

        def plain(used):
            return quiet(lambda images, experts: used.heads[HEAD](used.backbone(images, experts)))

        theirs = dict(module=self.theirs, missing=self.absent)
        hf = None if self.absent else quiet(self.hugging_face)
        out = [
            frozen_contender("vitpose_fast frozen", self.frozen, self.ours),
            Contender("vitpose_fast module", plain(self.module), module=self.module),
            Contender("official, eager kernels", plain(self.official), module=self.official),
            Contender("Hugging Face (SDPA)", hf, **theirs),
        ]
        if self.cuda:
            out.append(Contender("Hugging Face, eager launches", hf, graph=False, **theirs))
        elif not self.mixed:
            out += self._cpu_runtimes()
            for name, frozen in self.others.items():
                own = dict(agree=close(INT8_TOLERANCE), dtype=torch.int8) if "int8" in name else {}
                out.append(Contender(name, lambda images, _, frozen=frozen: frozen(images, HEAD), module=frozen, **own))
        if compiled and not self.absent:
            torch._dynamo.reset()  # forget what was compiled for earlier models
            for label, options in (("torch.compile", {}), ("max-autotune", {"mode": "max-autotune"})):
                function = torch.no_grad()(torch.compile(self.hugging_face, dynamic=False, **options))
                # Only max-autotune records its own CUDA graphs.
                own = dict(own_graph=True) if options else {}
                out.append(Contender(f"Hugging Face, {label}", function, compiled=True, **own, **theirs))
        return out

    def _cpu_runtimes(self) -> list[Contender]:
        out = []
        for name, function, reason in cpu_runtimes.runtimes(lambda: hugging_face.twin(self.model), self.dtype):
            missing = self.absent or reason
            own = dict(agree=close(INT8_TOLERANCE), dtype=torch.int8) if "int8" in name else {}
            not_counted = {"launches": None}  # PyTorch sees nothing of what they do
            out.append(Contender(name, None if missing else function, missing, extra=not_counted, **own))
        return out
