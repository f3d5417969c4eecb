import pytest
import torch

from model.group_norm import GroupBatchNorm, running_statistics

WIDTH, GROUP, N = 4, 3, 5


def batch(groups: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(groups * GROUP, N, WIDTH, generator=generator, dtype=torch.float64) + 1


def pair() -> tuple[GroupBatchNorm, torch.nn.BatchNorm1d]:
    """Ours and torch's batch norm with the same weights, which are not the neutral ones."""
    torch.manual_seed(0)
    ours, theirs = GroupBatchNorm(WIDTH, GROUP).double(), torch.nn.BatchNorm1d(WIDTH).double()
    with torch.no_grad():
        ours.weight.uniform_(0.5, 2)
        ours.bias.uniform_(-1, 1)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    return ours, theirs


def test_on_one_group_it_is_torchs_batch_norm_in_value_and_gradients() -> None:
    ours, theirs = pair()
    x, weight = batch(1).requires_grad_(), batch(1, seed=1)
    mine = ours(x)
    reference = theirs(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(mine, reference)
    grads = (
        torch.autograd.grad((out * weight).sum(), [x, module.weight, module.bias])
        for out, module in ((mine, ours), (reference, theirs))
    )
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_running_statistics_and_evaluation_are_torchs() -> None:
    ours, theirs = pair()
    for seed in range(3):
        ours(batch(1, seed))
        theirs(batch(1, seed).transpose(1, 2))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    x = batch(2, seed=9)[:4]  # not whole groups: in evaluation any number will do
    before = ours.eval().running_mean.clone()
    torch.testing.assert_close(ours(x), theirs.eval()(x.transpose(1, 2)).transpose(1, 2))
    assert torch.equal(ours.running_mean, before)


def test_a_group_does_not_see_the_others() -> None:
    ours, _ = pair()
    x = batch(3)
    together = ours(x)
    for group, rows in zip(together.split(GROUP), x.split(GROUP), strict=True):
        torch.testing.assert_close(group, ours(rows))


def test_running_statistics_advance_by_the_mean_over_the_groups() -> None:
    ours, _ = pair()
    ours(batch(3))
    each = []
    for rows in batch(3).split(GROUP):
        alone, _ = pair()
        alone(rows)
        each.append(torch.stack([alone.running_mean, alone.running_var]))
    assert not torch.allclose(each[0], each[1])
    torch.testing.assert_close(torch.stack([ours.running_mean, ours.running_var]), sum(each) / 3)


def test_parts_of_a_batch_advance_running_statistics_once_or_not_at_all() -> None:
    (ours, again), x = (pair()[0], pair()[0]), batch(4)
    whole = ours(x)
    for advance in (False, True):
        before = again.running_var.clone()
        with running_statistics(torch.nn.Sequential(again), advance):
            parts = [again(part) for part in x.split(2 * GROUP)]
        assert torch.equal(again.running_var, before) != advance
        torch.testing.assert_close(torch.cat(parts), whole)
    torch.testing.assert_close(dict(again.named_buffers()), dict(ours.named_buffers()))


def test_running_statistics_take_no_part_in_the_gradient() -> None:
    ours, _ = pair()
    ours(batch(2).requires_grad_())
    assert not ours.running_mean.requires_grad
    assert not ours.running_var.requires_grad
    assert {name for name, _ in ours.named_buffers()} == {"running_mean", "running_var"}


def masked() -> tuple[torch.Tensor, torch.Tensor]:
    """Two groups, and which of their tokens are real: not equally many in each."""
    valid = torch.rand(2 * GROUP, N, generator=torch.Generator().manual_seed(5)) < 0.6
    assert len(set(valid.view(2, -1).sum(1).tolist())) == 2
    return batch(2), valid


def test_with_a_mask_statistics_and_values_are_those_of_the_real_tokens_alone() -> None:
    ours, (x, valid) = pair()[0], masked()
    x.requires_grad_()
    weight = batch(2, seed=1)
    mine = ours(x, valid)
    grad = torch.autograd.grad((mine * weight)[valid].sum(), x)[0]
    running = []
    for group in range(2):
        rows = slice(group * GROUP, (group + 1) * GROUP)
        _, theirs = pair()
        alone = theirs(x[rows][valid[rows]])
        running.append(torch.stack([theirs.running_mean, theirs.running_var]))
        torch.testing.assert_close(mine[rows][valid[rows]], alone)
        expected = torch.autograd.grad((alone * weight[rows][valid[rows]]).sum(), x)[0]
        torch.testing.assert_close(grad[rows], expected[rows])
    torch.testing.assert_close(torch.stack([ours.running_mean, ours.running_var]), sum(running) / 2)


def test_how_far_a_batch_is_padded_changes_nothing() -> None:
    (ours, again), (x, valid) = (pair()[0], pair()[0]), masked()
    plain = ours(x, valid)
    longer = torch.cat([x, 1e6 * torch.ones(len(x), 3, WIDTH, dtype=x.dtype)], dim=1)
    padded = again(longer, torch.cat([valid, torch.zeros(len(x), 3, dtype=torch.bool)], dim=1))
    torch.testing.assert_close(padded[:, :N][valid], plain[valid])
    torch.testing.assert_close(again.running_var, ours.running_var)


def test_a_mask_that_is_all_true_changes_nothing() -> None:
    ours, again = pair()[0], pair()[0]
    torch.testing.assert_close(ours(batch(2)), again(batch(2), torch.ones(2 * GROUP, N, dtype=torch.bool)))
    torch.testing.assert_close(ours.running_var, again.running_var)


def test_under_autocast_statistics_are_taken_in_float32() -> None:
    norm = GroupBatchNorm(WIDTH, GROUP)
    x = batch(1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    assert out.dtype == torch.float32
    expected = x.double().mean(dim=(0, 1)).float() * norm.momentum
    torch.testing.assert_close(norm.running_mean, expected, rtol=1e-5, atol=1e-6)


def test_half_a_group_in_training_is_refused() -> None:
    with pytest.raises(AssertionError, match="whole groups"):
        GroupBatchNorm(WIDTH, GROUP)(torch.zeros(GROUP + 1, N, WIDTH))
