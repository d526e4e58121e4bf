"""SGD and Adam on plain tensors: their formulas, their state, and what they refuse. (Per layer: test_module; whole runs: test_networks.)"""

import math

import pytest
import torch
from torch import Tensor

from core.nn import SGD, Adam, Muon, Parameter, clip, norms, optim
from core.nn.optim import NEWTON_SCHULZ, orthogonal, orthogonal_coarsely
from tests.core.nn.errors import refused


def problem(generator: torch.Generator) -> list[Parameter]:
    return [
        Parameter(name, *torch.randn(2, *shape, generator=generator, dtype=torch.float64))
        for name, shape in [("a", (3, 4)), ("b.bias", (5,))]
    ]


def follow(rule: Adam | Muon, parameters: list[Parameter], steps: int) -> list[Tensor]:
    """Steps down the slope of `sum(cos(value))`, so that each derivative hangs on where the last step went."""
    for _ in range(steps):
        rule([p._replace(derivative=-p.value.sin()) for p in parameters])
    return [p.value.clone() for p in parameters]


def test_adam_is_its_published_formula(generator: torch.Generator) -> None:
    adam, value = Adam(0.1, (0.8, 0.9), 1e-3), torch.tensor([2.0, -1.0], dtype=torch.float64)
    expected, m, v = value.tolist(), [0.0, 0.0], [0.0, 0.0]
    for t in range(1, 6):
        d = [math.cos(t), math.sin(t)]
        adam([Parameter("a", value, torch.tensor(d, dtype=torch.float64))])
        for i in range(2):
            m[i] = 0.8 * m[i] + 0.2 * d[i]
            v[i] = 0.9 * v[i] + 0.1 * d[i] ** 2
            expected[i] -= 0.1 * (m[i] / (1 - 0.8**t)) / (math.sqrt(v[i] / (1 - 0.9**t)) + 1e-3)
        assert value.tolist() == pytest.approx(expected, rel=1e-12)


def test_the_first_step_of_adam_is_as_long_as_its_lr_whatever_the_derivatives_size() -> None:
    for size in (1e-4, 1.0, 1e4):
        value = torch.zeros(2, dtype=torch.float64)
        Adam(0.01, epsilon=1e-15)([Parameter("a", value, torch.tensor([size, -size], dtype=torch.float64))])
        assert value.tolist() == pytest.approx([-0.01, 0.01])


@pytest.mark.parametrize("steps", [1, 4])
def test_adam_resumed_from_its_state_goes_on_bit_for_bit(steps: int, generator: torch.Generator) -> None:
    parameters, whole = problem(generator), Adam(0.1)
    follow(whole, parameters, steps)
    copies = [p._replace(value=p.value.clone()) for p in parameters]
    state = whole.state()
    assert sorted(state) == ["m.a", "m.b.bias", "v.a", "v.b.bias"]
    resumed = Adam(0.1)
    resumed.resume(state, whole.step)
    expected = follow(whole, parameters, 3)  # the first goes on while the state is held: the two must not share it
    assert all(torch.equal(a, b) for a, b in zip(follow(resumed, copies, 3), expected, strict=True))
    assert resumed.step == whole.step == steps + 3


def matrices(generator: torch.Generator) -> list[Parameter]:
    shapes = [("a.weight", (3, 3, 20, 24)), ("b.weight", (2, 2, 48, 17)), ("c.weight", (3, 3, 16, 64)), ("c.bias", (64,))]
    return [Parameter(name, *torch.randn(2, *shape, generator=generator, dtype=torch.float64)) for name, shape in shapes]


@pytest.mark.parametrize("shape", [(20, 90), (90, 20), (31, 62)], ids=str)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_a_matrix_is_made_orthogonal_as_its_singular_vectors_say(shape: tuple[int, int], size: float, generator: torch.Generator) -> None:
    matrix = torch.randn(*shape, generator=generator, dtype=torch.float64) * size
    U, _, Vt = torch.linalg.svd(matrix, full_matrices=False)
    got = orthogonal(matrix)
    along = torch.einsum("mr,mn,rn->r", U, got, Vt)  # its singular values on the directions of `matrix`
    assert along.min() > 0.65
    assert along.max() < 1.25
    assert (got - U * along @ Vt).abs().max() < 1e-6  # and nothing on others


@pytest.mark.parametrize("shape", [(64, 576), (1152, 128), (96, 96)], ids=str)
def test_a_matrix_of_many_decades_is_made_orthogonal_as_the_paper_says(shape: tuple[int, int], generator: torch.Generator) -> None:
    U, S, Vt = torch.linalg.svd(torch.randn(*shape, generator=generator, dtype=torch.float64), full_matrices=False)
    matrix = U * torch.logspace(0, -5, len(S), dtype=torch.float64) @ Vt
    X = matrix / matrix.norm()
    for _ in range(Muon.ROUNDS):
        G = X @ X.T
        X = NEWTON_SCHULZ[0] * X + NEWTON_SCHULZ[1] * G @ X + NEWTON_SCHULZ[2] * G @ G @ X
    assert (orthogonal(matrix) - X).norm() < 1e-8 * X.norm()
    assert (orthogonal(matrix.float()).double() - X).norm() < 1e-3 * X.norm()
    coarse = orthogonal(matrix.bfloat16())
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse, orthogonal(matrix.bfloat16().float()))


@pytest.mark.parametrize("shape", [(3, 128, 256), (1152, 128), (128, 128)], ids=str)
@pytest.mark.parametrize(("decades", "off"), [(1, 0.02), (3, 0.1)])
@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_coarsely_a_matrix_is_made_orthogonal_nearly_as_finely(
    shape: tuple[int, ...], decades: int, off: float, size: float, generator: torch.Generator
) -> None:
    U, S, Vt = torch.linalg.svd(torch.randn(*shape, generator=generator, dtype=torch.float64), full_matrices=False)
    matrix = size * U * torch.logspace(0, -decades, S.shape[-1], dtype=torch.float64) @ Vt
    got, fine = orthogonal_coarsely(matrix.float()).double(), orthogonal(matrix)
    assert (got - fine).norm() < off * fine.norm()


def test_nothing_is_coarsely_made_of_nothing() -> None:
    assert not orthogonal_coarsely(torch.zeros(130, 140)).any()


def test_muon_is_coarse_with_large_matrices_where_bfloat16_is_fast(generator: torch.Generator) -> None:
    shapes = {"large": (1, 1, 128, 256), "small": (3, 3, 20, 64)}
    values = {name: torch.randn(2, *shape, generator=generator) for name, shape in shapes.items()}
    after = {}
    for factors in (torch.float32, torch.bfloat16, torch.float16):
        parameters = [Parameter(name, value[0].clone(), value[1]) for name, value in values.items()]
        Muon(0.1, factors=factors)(parameters)
        after[factors] = {name: value for name, value, _ in parameters}
    for name, value in values.items():
        fine, coarse = after[torch.float32][name], after[torch.bfloat16][name]
        assert torch.equal(after[torch.float16][name], fine)
        assert torch.equal(coarse, fine) == (name == "small")
        torch.testing.assert_close(coarse - value[0], fine - value[0], rtol=0, atol=0.02 * (fine - value[0]).abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(20, 90), (90, 20), (31, 31)], ids=str)
def test_matrices_at_once_are_made_orthogonal_as_one_by_one(shape: tuple[int, int], dtype: torch.dtype, generator: torch.Generator) -> None:
    sizes = torch.tensor([1e-6, 1.0, 1e3, 0.0]).view(4, 1, 1)  # each has its own length, the last one none
    matrices = (torch.randn(4, *shape, generator=generator, dtype=torch.float64) * sizes).to(dtype)
    together = orthogonal(matrices)
    for one, got in zip(matrices, together, strict=True):
        torch.testing.assert_close(got, orthogonal(one), rtol=0, atol=1e-10 if dtype == torch.float64 else 1e-4)


def test_muon_steps_the_same_with_all_of_one_shape_at_once(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [
        ("a", (3, 3, 20, 24)),
        ("b", (1, 1, 48, 17)),
        ("c", (3, 3, 20, 24)),
        ("d", (1, 1, 48, 17)),
        ("e", (17, 48)),
        ("f", (3, 3, 20, 24)),
    ]
    parameters = [Parameter(name, *torch.randn(2, *shape, generator=generator, dtype=torch.float64)) for name, shape in shapes]
    copies = [p._replace(value=p.value.clone()) for p in parameters]
    one_by_one, together = Muon(0.1), Muon(0.1)
    expected = follow(one_by_one, parameters, 5)
    sizes = list[int]()

    def alike(derived: list[tuple[str, Tensor, Tensor]]) -> list[list[tuple[str, Tensor, Tensor]]]:
        groups = [[each for each in derived if each[1].shape == shape] for shape in {each[1].shape: None for each in derived}]
        sizes.extend(map(len, groups))
        return groups

    monkeypatch.setattr(optim, "_alike", alike)
    for got, wanted in zip(follow(together, copies, 5), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    assert sizes == [3, 2] * 5
    for name, mean in one_by_one.state().items():
        torch.testing.assert_close(together.state()[name], mean, rtol=1e-9, atol=1e-9)


def test_what_is_computed_at_once_is_of_one_shape_and_on_a_processor_alone() -> None:
    on_a_processor, elsewhere = (
        [(name, torch.zeros(shape, device=device), torch.zeros(0)) for name, shape in (("a", (2, 3)), ("b", (3, 2)), ("c", (2, 3)))]
        for device in ("cpu", "meta")
    )
    assert [[name for name, _, _ in group] for group in optim._alike(on_a_processor)] == [["a"], ["b"], ["c"]]
    assert [[name for name, _, _ in group] for group in optim._alike(elsewhere)] == [["a", "c"], ["b"]]


def test_norms_are_each_derivatives_length(generator: torch.Generator) -> None:
    parameters = matrices(generator)
    expected = [math.sqrt(float(p.derivative.square().sum())) for p in parameters if p.derivative is not None]
    assert norms(parameters).tolist() == pytest.approx(expected, rel=1e-12)


def test_means_whose_derivatives_stay_away_end_at_zero(generator: torch.Generator) -> None:
    name, value, derivative = matrices(generator)[0]
    value, derivative = value.float(), derivative.float()
    muon = Muon(0.1)
    for step in range(1100):
        derivative[..., 5:] *= step < 5
        muon([Parameter(name, value, derivative)])
        seen = muon.means[name].abs()
        assert seen[seen != 0].min() > 1e-37  # nothing is subnormal, neither when it is made 0 nor long before
    assert (muon.means[name][..., 5:] == 0).all()
    assert (muon.means[name][..., :5] != 0).all()


def test_no_derivative_is_no_step() -> None:
    assert torch.equal(orthogonal(torch.zeros(3, 5)), torch.zeros(3, 5))


def test_muon_steps_along_its_momentum_and_leaves_what_has_few_channels_to_adam(generator: torch.Generator) -> None:
    parameters = matrices(generator)
    copies = [p._replace(value=p.value.clone()) for p in parameters]
    muon, adam = Muon(0.02, 0.9), Adam(0.02)
    m = 0.0
    for _ in range(3):
        muon(parameters)
        adam(copies[2:])
        d = copies[1].derivative
        assert d is not None
        m = 0.9 * m + 0.1 * d
        step = orthogonal((0.1 * d + 0.9 * m).flatten(0, 2))
        copies[1].value.sub_(step.view_as(d) * 0.02 * 0.2 * math.sqrt(192))
    for got, expected in zip(parameters[1:], copies[1:], strict=True):
        torch.testing.assert_close(got.value, expected.value)


def test_muon_resumed_from_its_state_goes_on_bit_for_bit(generator: torch.Generator) -> None:
    parameters, whole = matrices(generator), Muon(0.1)
    follow(whole, parameters, 2)
    copies = [p._replace(value=p.value.clone()) for p in parameters]
    state = whole.state()
    assert sorted(state) == ["m.c.bias", "m.c.weight", "mean.a.weight", "mean.b.weight", "v.c.bias", "v.c.weight"]
    resumed = Muon(0.1)
    resumed.resume(state, 2)
    expected = follow(whole, parameters, 3)
    assert all(torch.equal(a, b) for a, b in zip(follow(resumed, copies, 3), expected, strict=True))


def test_a_state_once_resumed_is_not_changed_by_later_steps(generator: torch.Generator) -> None:
    parameters, adam = problem(generator), Adam(0.1)
    follow(adam, parameters, 1)
    saved = {name: value.clone() for name, value in adam.state().items()}
    given = {name: value.clone() for name, value in saved.items()}
    adam.resume(given, 1)
    follow(adam, parameters, 1)
    assert all(torch.equal(given[name], saved[name]) for name in saved)


def test_a_rate_set_between_steps_holds_from_the_next(generator: torch.Generator) -> None:
    value = torch.zeros(1, dtype=torch.float64)
    for rule in (SGD(1.0), Adam(1.0, epsilon=1e-12)):
        rule([Parameter("a", value.zero_(), torch.ones(1, dtype=torch.float64))])
        rule.lr = 0.5
        rule([Parameter("a", value, torch.ones(1, dtype=torch.float64))])
        assert value.item() == pytest.approx(-1.5)


@pytest.mark.parametrize("rule", [SGD(0.5), Adam(0.5)], ids=["SGD", "Adam"])
def test_weights_keep_their_dtype_whatever_the_derivatives(rule: SGD | Adam) -> None:
    value = torch.ones(3, dtype=torch.bfloat16)
    rule([Parameter("a", value, torch.ones(3, dtype=torch.float32))])
    assert value.dtype == torch.bfloat16
    assert value.tolist() == [0.5] * 3


@pytest.mark.parametrize("rule", [SGD, Adam, Muon])
@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan")])
def test_a_rate_must_be_above_zero(rule: type[SGD], lr: float) -> None:
    with refused(f"lr (={lr}) must be above 0"):
        rule(lr)


@pytest.mark.parametrize(("longest", "length"), [(10.0, 5.0), (5.0, 5.0), (1.0, 1.0)])
def test_derivatives_are_shortened_together_and_never_lengthened(longest: float, length: float) -> None:
    parameters = [Parameter("a", torch.zeros(2), torch.tensor([3.0, 0.0])), Parameter("b", torch.zeros(1, 1), torch.tensor([[-4.0]]))]
    clip(parameters, longest)
    got = torch.cat([p.derivative.flatten() for p in parameters if p.derivative is not None])
    torch.testing.assert_close(got, torch.tensor([3.0, 0.0, -4.0]) * length / 5)


def test_derivatives_that_are_all_zero_stay_so() -> None:
    parameters = [Parameter("a", torch.zeros(2), torch.zeros(2))]
    clip(parameters, 1.0)
    assert torch.equal(parameters[0].derivative, torch.zeros(2))  # type: ignore[arg-type]
