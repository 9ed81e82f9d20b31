import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from headstart.libraries.objective import balanced_weights, squared_norm_penalty, warmup_cosine
from headstart.libraries.param_groups import Group


def model_and_groups() -> tuple[nn.Module, list[Group]]:
    """A small model in float64, its layers in groups of different λ, the last one's 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    l2s = {"0": 0.03, "2": 0.5, "4": 0.0}
    groups = [
        Group(name, l2, 0.1, {key: value for key, value in model.named_parameters() if key.startswith(name)})
        for name, l2 in l2s.items()
    ]
    return model, groups


def test_the_penalty_is_the_sum_of_squares_and_its_gradient_2_lambda_w() -> None:
    model, groups = model_and_groups()
    penalty = squared_norm_penalty(groups)
    values = [
        group.l2 * value**2 for group in groups for p in group.parameters.values() for value in p.flatten().tolist()
    ]
    assert penalty.dtype == torch.float64
    assert penalty.item() == pytest.approx(sum(values), rel=1e-13)
    torch.autograd.backward(penalty)
    for group in groups:
        for parameter in group.parameters.values():
            if group.l2:
                assert parameter.grad is not None
                assert torch.allclose(parameter.grad, 2 * group.l2 * parameter, rtol=1e-15, atol=0)
            else:
                assert parameter.grad is None
    assert len(list(model.parameters())) == 6


def test_the_penalty_of_half_precision_weights_is_summed_in_single() -> None:
    weights = nn.Parameter(torch.full((3000,), 10.0, dtype=torch.float16))
    penalty = squared_norm_penalty([Group("all", 0.5, 0.1, {"weights": weights})])
    assert penalty.item() == pytest.approx(150_000)


def test_no_penalty_is_zero() -> None:
    assert squared_norm_penalty([Group("free", 0.0, 0.1, {"w": nn.Parameter(torch.ones(2))})]).item() == 0


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_weight_decay_of_sgd_is_the_written_out_penalty(*, momentum: float, nesterov: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, 6, dtype=torch.float64, generator=generator)
    labels = torch.randint(3, (20,), generator=generator)

    def trained(*, fused: bool, factor: float = 2.0) -> list[torch.Tensor]:
        model, groups = model_and_groups()
        optimizer = torch.optim.SGD(
            [
                {"params": list(g.parameters.values()), "lr": g.lr, "weight_decay": factor * g.l2 if fused else 0.0}
                for g in groups
            ],
            momentum=momentum,
            nesterov=nesterov,
        )
        for _ in range(10):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            torch.autograd.backward(loss if fused else loss + squared_norm_penalty(groups))
            optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    written = trained(fused=False)
    for one, other in zip(trained(fused=True), written, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)
    halved = trained(fused=True, factor=1.0)  # the optimiser's own convention, ½λ‖W‖², is another objective
    assert not torch.allclose(halved[0], written[0], rtol=0, atol=1e-4)


def test_balanced_weights_are_scikit_learns() -> None:
    labels = np.array([0] * 7 + [1] * 2 + [2])
    weights = balanced_weights(labels, 3)
    assert weights.dtype == np.float32
    assert weights == pytest.approx(compute_class_weight("balanced", classes=np.arange(3), y=labels), rel=1e-6)
    assert weights[labels].mean() == pytest.approx(1)
    assert np.isfinite(balanced_weights(labels, 4)).all()


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_cosine() -> None:
    warmup, total = 4, 24
    factors = [warmup_cosine(step, warmup, total) for step in range(total + 1)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[warmup] == 1
    assert factors[(warmup + total) // 2] == pytest.approx(0.5)
    assert factors[total] == pytest.approx(0, abs=1e-15)
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert warmup_cosine(total + 5, warmup, total) == pytest.approx(0, abs=1e-15)


def test_a_schedule_without_warmup_and_one_of_nothing_else() -> None:
    assert warmup_cosine(0, 0, 10) == 1
    assert [warmup_cosine(step, 2, 2) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
