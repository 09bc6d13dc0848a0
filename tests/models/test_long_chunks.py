"""A long chunk goes through a feed-forward block in parts: the same numbers in less memory."""

import pytest
import torch

from headstart.models import decoder
from headstart.models.decoder import MLP
from tests.conformance import models


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 40])
@pytest.mark.parametrize("added", [False, True])
def test_parts_are_the_whole(rows: int, added: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = models.shared("gqa").config
    torch.manual_seed(0)
    mlp = MLP(config, torch.float32, torch.device("cpu"))
    for weight in mlp.parameters():
        weight.data.normal_()
    x, onto = torch.randn(2, rows, config.hidden_size)
    with torch.inference_mode():
        want = mlp(x, onto.clone()) if added else mlp(x)
        monkeypatch.setattr(decoder, "_MLP_ROWS", 8)
        widths: list[int] = []
        inner = mlp.down.forward
        monkeypatch.setattr(mlp.down, "forward", lambda part, *more: widths.append(len(part)) or inner(part, *more))
        got = mlp(x, onto.clone()) if added else mlp(x)
    torch.testing.assert_close(got, want)
    assert max(widths) <= 8 and sum(widths) == rows
