"""Tests of torch.compile, torch.export and AOTInductor on the ops: one graph, any batch size, the same results."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

SETUP = """
    import torch
    import vitpose_fast as vp
    from vitpose_fast import functional as F

    class Pose(torch.nn.Module):
        def __init__(self):
            super().__init__()
            options = dict(attention="window+shift+pool", window=(2, 3))
            options |= dict(depth=2, width=32, num_heads=2, decoder_width=16)
            self.model = vp.create_model("vitpose++-tiny", tasks=("coco", "mpii"), image_size=(64, 48), **options)

        def forward(self, images, task):
            features = self.model.backbone(images, task)
            points, scores = F.heatmap_decode(self.model.heads["coco"](features))
            return features, points, scores

    torch.manual_seed(0)
    pose = Pose().eval()
    images, task = torch.randn(3, 3, 64, 48), torch.tensor([0, 1, 0])
    with torch.no_grad():
        expected = pose(images, task)
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = ({0: batch}, {0: batch})

    def check(found):
        for a, b in zip(found[:1], expected[:1]):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert found[1].shape == (3, 17, 2) and found[2].shape == (3, 17)
"""


def run(code: str) -> None:
    """Run code in a process without Triton's interpreter, with which PyTorch's code generator does not work."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = textwrap.dedent(SETUP) + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def test_exported_for_any_batch_and_packed_by_aotinductor(tmp_path):
    run(
        f"""
        with torch.no_grad():
            example = (torch.randn(2, 3, 64, 48), torch.tensor([0, 1]))
            program = torch.export.export(pose, example, dynamic_shapes=shapes)
            check(program.module()(images, task))
            package = torch._inductor.aoti_compile_and_package(program, package_path={str(tmp_path / "pose.pt2")!r})
            check(torch._inductor.aoti_load_package(package)(images, task))
        """
    )


def test_compiled_in_one_graph_with_gradients():
    run(
        """
        pose.train()
        def loss(model):
            features, *_ = model(images, task)
            return features.square().mean()
        loss(pose).backward()
        expected = {n: p.grad.clone() for n, p in pose.named_parameters() if p.grad is not None}
        pose.zero_grad()
        loss(torch.compile(pose, fullgraph=True)).backward()
        assert len(expected) > 20
        for name, p in pose.named_parameters():
            if name in expected:
                torch.testing.assert_close(p.grad, expected[name], rtol=1e-3, atol=1e-6)
        """
    )
