"""AdamW in bfloat16: torch's AdamW in float32, rounded to a neighbour; steps that add up; the same random numbers."""

import copy

import pytest
import torch

from rqa.training import adamw_bf16
from rqa.training.adamw_bf16 import AdamWBf16, stochastic_round

OPTIONS = {"lr": 0.01, "weight_decay": 0.1}


def parameters(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [torch.nn.Parameter(torch.randn(shape).bfloat16()) for shape in ((7, 9), (5,))]


def neighbours(values):
    """Return the bfloat16 below and above each value, in magnitude."""
    lower = (values.view(torch.int32) >> 16).to(torch.int16)
    is_exact = (values.view(torch.int32) & 0xFFFF) == 0
    return lower.view(torch.bfloat16), torch.where(is_exact, lower, lower + 1).view(torch.bfloat16)


def test_each_step_is_that_of_torch_in_float32_rounded_to_a_neighbour(monkeypatch):
    monkeypatch.setattr(adamw_bf16, "PART", 10)
    ours = parameters()
    theirs = [torch.nn.Parameter(p.detach().float()) for p in ours]
    optimizer, reference = AdamWBf16(ours, **OPTIONS), torch.optim.AdamW(theirs, **OPTIONS)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn(own.shape, generator=generator).bfloat16()
            other.grad = own.grad.float()
        optimizer.step()
        reference.step()
        for own, other in zip(ours, theirs, strict=True):
            state, expected = optimizer.state[own], reference.state[other]
            pairs = ((own, other), (state["mean"], expected["exp_avg"]), (state["variance"], expected["exp_avg_sq"]))
            for got, exact in pairs:
                got, exact = got.detach(), exact.detach()
                below, above = neighbours(exact)
                # The product of float32 values may be rounded otherwise.
                near = (got.float() - exact).abs() <= (above.float() - below.float()).abs() * 1.001
                assert ((got == below) | (got == above) | near).all()
                assert (got != exact).any()
                exact.copy_(got)  # the next step begins with the same values


def test_small_steps_add_up():
    """Rounded to the nearest, no step changes a weight of 1."""
    ours, plain = (torch.nn.Parameter(torch.ones(4000).bfloat16()) for _ in range(2))
    exact = torch.nn.Parameter(torch.ones(4000))
    optimizers = [
        AdamWBf16([ours], lr=1e-4),
        *(torch.optim.AdamW([p], lr=1e-4, weight_decay=0.0) for p in (plain, exact)),
    ]
    for _ in range(100):
        for parameter, optimizer in zip((ours, plain, exact), optimizers, strict=True):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    assert (plain == 1).all()
    assert exact.mean().item() == pytest.approx(0.99, abs=1e-5)
    assert ours.float().mean().item() == pytest.approx(0.99, abs=3e-4)
    variance = optimizers[0].state[ours]["variance"].float().mean().item()
    assert variance == pytest.approx(1 - 0.999**100, rel=0.01)


def test_rounding_has_the_value_as_expectation():
    values = torch.tensor([1.001, -3.01, 1e-30, 7.0, 0.0]).expand(100_000, 5).contiguous()
    rounded = stochastic_round(values, torch.Generator().manual_seed(0)).float()
    torch.testing.assert_close(rounded.mean(0), values[0], rtol=1e-4, atol=0.0)
    assert [len(column.unique()) for column in rounded.T] == [2, 2, 2, 1, 1]


def test_steps_are_the_same_after_a_resume_and_for_any_state_of_the_random_numbers():
    def run(steps, group, state=None):
        optimizer = AdamWBf16(group, **OPTIONS)
        if state:
            optimizer.load_state_dict(copy.deepcopy(state))
        for step in steps:
            for parameter in group:
                parameter.grad = torch.full_like(parameter, 0.1 * step + 0.1)
            optimizer.step()
        return optimizer.state_dict()

    whole, parts = parameters(), parameters()
    run(range(6), whole)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    state = run(range(3), parts)
    assert torch.equal(torch.get_rng_state(), before)
    run(range(3, 6), parts, state)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_two_parameters_have_different_random_numbers():
    group = [torch.nn.Parameter(torch.ones(1000).bfloat16()) for _ in range(2)]
    optimizer = AdamWBf16([{"params": group[:1]}, {"params": group[1:]}], lr=1e-3)
    for parameter in group:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not torch.equal(*group)
