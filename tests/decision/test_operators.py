"""Operators outside the allow-list are found in TorchScript source, however they are spelt."""

import pytest

from steel.decision.operators import find_forbidden


@pytest.mark.parametrize(
    "line",
    [
        "_0 = torch.add(torch.conv2d(x, weight, bias), 1)",
        '_1 = torch.format("cannot save: torch.from_file(\\"x\\") # {}", x)',
        'ops.prim.RaiseException("use torch.save()", "builtins.ValueError")',
        'networks = getattr(self.networks, "0")',
        "probabilities = __torch__.steel.decision.inspector.Probabilities(classes, pixels)",
        "squeeze : __torch__.torchvision.ops.misc.Conv2dNormActivation",
    ],
)
def test_code_of_exported_files_is_allowed(line: str) -> None:
    assert find_forbidden(f"  {line}\n".encode()) == ""


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('torch.save(x, "f")', "save"),
        ('x.save("f")', "save"),
        ('ops.aten.from_file("f", True, 1)', "from_file"),
        ('getattr(torch, "from_file")("f", True, 1)', "from_file"),
        ("getattr(torch, 'from_file')", "unusual"),
        ("getattr(torch, name)", "unusual"),
        ("torch.set_grad_enabled(False)", "set_grad_enabled"),
        ("torch.as_strided(x, [9], [9], 9)", "as_strided"),
        ("ops.quantized.conv2d_prepack(x)", "ops.quantized"),
        ("(ops).prim.TimePoint()", "ops"),
        ('print("0 defective")', "print"),
        ("fork(f, x)", "fork"),
        ("def __setstate__(self, state: int) -> NoneType:", "__setstate__"),
        ("a : __torch__.torch.classes.aoti.Loader", "torch.classes"),
        ("x = 1  # torch", "#"),
        ('x = """ " """', "unusual"),
    ],
)
def test_code_that_could_act_is_found(line: str, found: str) -> None:
    assert found in find_forbidden(f"  y = torch.add(x, x)\n  {line}\n".encode())
