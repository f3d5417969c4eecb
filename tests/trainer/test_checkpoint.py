"""Which checkpoints there are, which is the best, which are removed. Saving and resuming: elsewhere."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer.checkpoint import DamagedError, check_hashes, read_checkpoint
from trainer.checkpoint_folder import (
    best_checkpoint,
    find_checkpoint,
    list_checkpoints,
    look_for_checkpoints,
    newest_checkpoint,
    prune,
    remove_leftovers,
    set_aside,
)
from trainer.checkpoint_load import load_weights
from trainer.errors import RunError

AddCheckpoint = Callable[..., Path]


def steps_in(run: Path) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(run / "checkpoints")]


def test_checkpoints_are_listed_oldest_first(tmp_path: Path, add_checkpoint: AddCheckpoint) -> None:
    for step in (300, 20, 1000):
        add_checkpoint(tmp_path, step)
    assert steps_in(tmp_path) == [20, 300, 1000]
    assert list_checkpoints(tmp_path / "nothing here") == []


def test_what_a_kill_left_unfinished_is_no_checkpoint(tmp_path: Path, add_checkpoint: AddCheckpoint) -> None:
    add_checkpoint(tmp_path, 1)
    whole = add_checkpoint(tmp_path, 2)
    whole.rename(whole.with_name(".step-00000002.partial"))
    assert steps_in(tmp_path) == [1]


def test_a_checkpoint_knows_its_step_its_place_in_the_data_and_its_recipe(
    tmp_path: Path, add_checkpoint: AddCheckpoint
) -> None:
    checkpoint = read_checkpoint(add_checkpoint(tmp_path, 7, 12.0))
    assert (checkpoint.step, checkpoint.progress.loader.epoch, checkpoint.progress.loader.position) == (7, 2, 40)
    assert checkpoint.val == {"rsum": 12.0}
    assert checkpoint.recipe.model.architecture == "itm-tiny"


@pytest.mark.parametrize(
    "content", [b"", b'{"format_version": 2, "st', b"[]", b"{}", b"null", b"\xff", b'{"format_version": 2}']
)
def test_a_damaged_state_is_a_users_error_that_names_the_file(
    tmp_path: Path, add_checkpoint: AddCheckpoint, content: bytes
) -> None:
    path = add_checkpoint(tmp_path, 1)
    (path / "state.json").write_bytes(content)
    for use in (lambda: read_checkpoint(path), lambda: steps_in(tmp_path), lambda: find_checkpoint(tmp_path)):
        with pytest.raises(RunError, match=r"step-00000001/state\.json: not a checkpoint's state"):
            use()


def test_a_checkpoint_of_another_version_says_so(tmp_path: Path, add_checkpoint: AddCheckpoint) -> None:
    path = add_checkpoint(tmp_path, 1)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"format_version": 1}))
    with pytest.raises(RunError, match="checkpoint format 1, this program reads 2"):
        newest_checkpoint(path.parent)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_changed_number_in_the_state_is_seen(tmp_path: Path, add_checkpoint: AddCheckpoint) -> None:
    state = add_checkpoint(tmp_path, 1) / "state.json"
    state.write_text(state.read_text().replace('"position": 40', '"position": 41'))
    with pytest.raises(DamagedError, match="its hash is another"):
        read_checkpoint(state.parent)


def test_a_state_may_be_written_otherwise_as_long_as_it_says_the_same(
    tmp_path: Path, add_checkpoint: AddCheckpoint
) -> None:
    path = add_checkpoint(tmp_path, 1, 1 / 3)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(dict(reversed(state.items()))))
    assert read_checkpoint(path).val == {"rsum": 1 / 3}


@pytest.mark.parametrize(("change", "message"), [("cut", "has 0 bytes"), ("remove", "is missing")])
def test_a_file_of_another_size_is_seen_without_reading_it(
    tmp_path: Path, add_checkpoint: AddCheckpoint, change: str, message: str
) -> None:
    weights = add_checkpoint(tmp_path, 1) / "weights.safetensors"
    weights.write_bytes(b"") if change == "cut" else weights.unlink()
    with pytest.raises(DamagedError, match=rf"weights\.safetensors: damaged: {message}, \d+ were written"):
        read_checkpoint(weights.parent)
    with pytest.raises(DamagedError):  # to measure another checkpoint instead would be silent
        find_checkpoint(tmp_path)


@pytest.mark.parametrize("place", [0, 7, 20, -1])
def test_a_flipped_bit_is_seen_when_the_file_is_read(
    tmp_path: Path, add_checkpoint: AddCheckpoint, place: int
) -> None:
    path = add_checkpoint(tmp_path, 1, weights={"a": torch.ones(3)})
    flip(path / "weights.safetensors", place)
    checkpoint = read_checkpoint(path)
    check_hashes(checkpoint, ["recipe.yaml"])
    with pytest.raises(DamagedError, match="not the bytes that were written"):
        check_hashes(checkpoint, checkpoint.files)


def test_the_newest_whole_one_is_resumed_and_damaged_ones_are_kept_apart(
    tmp_path: Path, add_checkpoint: AddCheckpoint
) -> None:
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3, 4):
        add_checkpoint(tmp_path, step)
    (folder / "step-00000003/weights.safetensors").unlink()
    (folder / "step-00000004/state.json").unlink()
    found = look_for_checkpoints(folder)
    assert [checkpoint.step for checkpoint in found.whole] == [1, 2]
    assert [path.name for path, _ in found.damaged] == ["step-00000003", "step-00000004"]
    newest = newest_checkpoint(folder)
    assert newest is not None
    assert newest.step == 2
    for path, _ in found.damaged:
        assert set_aside(path).name == f"damaged-{path.name}"
    (add_checkpoint(tmp_path, 4) / "state.json").unlink()
    assert set_aside(folder / "step-00000004").name == "damaged-step-00000004-2"
    assert steps_in(tmp_path) == [1, 2]
    prune(folder, 1)
    assert len(list(folder.glob("damaged-*"))) == 3


def test_where_all_are_damaged_nothing_begins_anew(tmp_path: Path, add_checkpoint: AddCheckpoint) -> None:
    assert newest_checkpoint(tmp_path / "checkpoints") is None
    path = add_checkpoint(tmp_path, 1)
    (path / "weights.safetensors").unlink()
    with pytest.raises(RunError, match=r"no checkpoint is whole \(.*is missing.*\); bring one back"):
        newest_checkpoint(path.parent)
    set_aside(path)
    with pytest.raises(RunError, match="no checkpoint is whole; bring one back"):
        newest_checkpoint(path.parent)


def test_the_best_has_the_largest_rsum_on_val_and_need_not_be_the_newest(
    tmp_path: Path, add_checkpoint: AddCheckpoint
) -> None:
    for step, rsum in ((1, 50.0), (2, 99.0), (3, 9.0), (4, None)):
        add_checkpoint(tmp_path, step, rsum)
    assert best_checkpoint(list_checkpoints(tmp_path / "checkpoints")).step == 2
    assert find_checkpoint(tmp_path).step == 2


def test_where_none_was_evaluated_the_newest_is_the_best(tmp_path: Path, add_checkpoint: AddCheckpoint) -> None:
    for step in (1, 3, 2):
        add_checkpoint(tmp_path, step)
    assert find_checkpoint(tmp_path).step == 3


def test_an_rsum_of_zero_is_an_evaluation(tmp_path: Path, add_checkpoint: AddCheckpoint) -> None:
    add_checkpoint(tmp_path, 1, 0.0)
    add_checkpoint(tmp_path, 2)
    assert find_checkpoint(tmp_path).step == 1


def test_a_checkpoint_can_be_given_itself(tmp_path: Path, add_checkpoint: AddCheckpoint) -> None:
    worse = add_checkpoint(tmp_path, 1, 1.0)
    add_checkpoint(tmp_path, 2, 2.0)
    assert find_checkpoint(worse).path == worse


def test_no_checkpoint_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere: no such run or checkpoint"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(RunError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="holds no checkpoint"):
        find_checkpoint(tmp_path / "file")


@pytest.mark.parametrize(
    ("rsums", "keep", "left"),
    [
        ([50, 99, 9, 8, 7], 2, [2, 4, 5]),
        ([1, 2, 3, 4, 5], 1, [5]),
        ([None] * 4, 2, [3, 4]),
        ([9, None, None], 1, [1, 3]),
        ([1, 2], 5, [1, 2]),
        ([], 1, []),
    ],
)
def test_pruning_keeps_the_newest_and_the_best(
    tmp_path: Path, add_checkpoint: AddCheckpoint, rsums: list[float | None], keep: int, left: list[int]
) -> None:
    for step, rsum in enumerate(rsums, start=1):
        add_checkpoint(tmp_path, step, rsum)
    prune(tmp_path / "checkpoints", keep)
    assert steps_in(tmp_path) == left
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.glob("*")) == [f"step-{step:08d}" for step in left]


def test_what_a_kill_left_half_removed_is_removed(tmp_path: Path, add_checkpoint: AddCheckpoint) -> None:
    doomed = add_checkpoint(tmp_path, 1)
    doomed.rename(doomed.with_name(".step-00000001.removed"))
    for step in (1, 2):  # the first one anew
        add_checkpoint(tmp_path, step)
    prune(tmp_path / "checkpoints", 1)
    remove_leftovers(tmp_path / "checkpoints")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


def network() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_weights_and_buffers_are_loaded_by_name_below_the_prefix(
    tmp_path: Path, add_checkpoint: AddCheckpoint
) -> None:
    module = network()
    saved = {f"encoders.{name}": torch.full_like(value, 7) for name, value in module.state_dict().items()}
    path = add_checkpoint(tmp_path, 1, weights=saved | {"elsewhere": torch.zeros(1)})
    assert load_weights(module, read_checkpoint(path), prefix="encoders.") == []
    assert all((value == 7).all() for value in module.state_dict().values())


def test_names_without_a_counterpart_are_told_and_the_rest_is_loaded(
    tmp_path: Path, add_checkpoint: AddCheckpoint
) -> None:
    path = add_checkpoint(tmp_path, 1, weights={"0.weight": torch.ones(2, 3), "old": torch.ones(1)})
    module = network()
    before = module.state_dict()["0.bias"].clone()
    unmatched = load_weights(module, read_checkpoint(path))
    assert {"old", "0.bias", "1.running_mean"} <= set(unmatched)
    assert "0.weight" not in unmatched
    assert torch.equal(module.state_dict()["0.weight"], torch.ones(2, 3))
    assert torch.equal(module.state_dict()["0.bias"], before)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"0.weight": torch.ones(9, 3)}, r"0\.weight is \[9, 3\] there and \[2, 3\] here \(1 such\)"),
        ({"other": torch.ones(1)}, "no weight has a name that is known here"),
    ],
)
def test_weights_of_another_model_are_a_users_error_and_change_nothing(
    tmp_path: Path, add_checkpoint: AddCheckpoint, weights: dict[str, torch.Tensor], message: str
) -> None:
    path, module = add_checkpoint(tmp_path, 1, weights=weights), network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(RunError, match=message):
        load_weights(module, read_checkpoint(path))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_weights_that_cannot_be_read_are_a_users_error(tmp_path: Path, add_checkpoint: AddCheckpoint) -> None:
    path = add_checkpoint(tmp_path, 1)
    size = (path / "weights.safetensors").stat().st_size
    (path / "weights.safetensors").write_bytes(b"?" * size)
    with pytest.raises(RunError, match=r"weights\.safetensors: cannot be read"):
        load_weights(network(), read_checkpoint(path))
