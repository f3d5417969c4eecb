"""What is checked before a run starts."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.convert import Options, write_split
from shards.demo.source import demo_records
from shards.errors import DataError
from shards.manifest import SHARD_SCHEMA
from tests.shards.pictures import with_regions
from trainer.config import Recipe
from trainer.errors import RunError
from trainer.plan import Plan, cache_of, make_plan

MakePlan = Callable[..., Plan]


@pytest.fixture
def plan(demo: Path, tmp_path: Path, tiny_recipe: Callable[..., Recipe]) -> MakePlan:
    """Plans a run on the demo data, in `tmp_path`/run; sections of the recipe change by name."""

    def make(processes: int = 1, run: dict | None = None, data: dict | None = None, **sections: dict) -> Plan:
        data = {"train": str(demo / "train"), "val": str(demo / "val")} | (data or {})
        run = {"dir": str(tmp_path / "run")} | (run or {})
        return make_plan(tiny_recipe(run=run, data=data, **sections), processes)

    return make


def test_a_fresh_run_counts_its_steps_and_writes_nothing(plan: MakePlan, tmp_path: Path) -> None:
    made = plan(schedule={"epochs": 2.5})
    assert (made.steps_per_epoch, made.total_steps) == (2, 5)  # 20 images in batches of 8, the rest dropped
    assert (made.resume, made.init_from, made.changed, made.finished) == (None, None, (), False)
    assert (made.steps_between(1.0), made.steps_between(0.5), made.steps_between(0.001)) == (2, 1, 1)
    assert not (tmp_path / "run").exists()


def test_however_short_a_run_has_a_step(plan: MakePlan) -> None:
    assert plan(schedule={"epochs": 0.01}).total_steps == 1


def test_a_trace_of_a_step_that_never_comes_is_refused(plan: MakePlan) -> None:
    assert plan(log={"trace_step": 2}, schedule={"epochs": 1.0}).total_steps == 2
    with pytest.raises(RunError, match=r"log.trace_step=3: the run has 2 steps"):
        plan(log={"trace_step": 3}, schedule={"epochs": 1.0})


def test_the_summary_says_what_would_run(plan: MakePlan, tmp_path: Path) -> None:
    text = "\n".join(plan(processes=2).summary())
    for part in (str(tmp_path / "run"), "random weights", "20 images", ": 6 images", "itm-tiny", "20 of 8 pairs"):
        assert part in text
    assert "2 processes, ZeRO-2, float32" in text
    assert "1 process, ZeRO-2" in "\n".join(plan().summary())
    assert "note   model.text.transformer.weights has no effect" in "\n".join(
        plan(model={"text": {"transformer": {"weights": "random"}}}).summary()
    )
    assert "val    none" in "\n".join(plan(data={"val": None}).summary())


@pytest.mark.parametrize(
    ("model", "start"),
    [
        ({}, "random weights"),
        ({"pretrained": "a.pt"}, "model.pretrained=a.pt"),
        (
            {"pretrained": "a.pt", "text": {"towers": "clip+transformer"}},
            "model.pretrained=a.pt and the weights of bert",
        ),
        ({"text": {"towers": "transformer", "transformer": {"weights": "random"}}}, "random weights"),
    ],
)
def test_the_summary_says_where_weights_come_from(plan: MakePlan, model: dict, start: str) -> None:
    assert f"from {start}" in plan(model=model).summary()[0]


@pytest.mark.parametrize("key", ["train", "val"])
def test_the_test_split_is_refused(plan: MakePlan, demo: Path, key: str) -> None:
    with pytest.raises(RunError, match=rf"data\.{key}=.*test: a test split"):
        plan(data={key: str(demo / "test")})


def test_a_run_needs_a_folder(plan: MakePlan, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"run\.dir: not given"):
        plan(run={"dir": ""})
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"run\.dir=.*file: is a file"):
        plan(run={"dir": str(tmp_path / "file")})


def test_a_run_needs_data(plan: MakePlan, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"data\.train: not given"):
        plan(data={"train": ""})
    for key in ("train", "val"):
        with pytest.raises(DataError, match="nowhere"):
            plan(data={key: str(tmp_path / "nowhere")})


def test_a_batch_must_divide_among_the_processes(plan: MakePlan) -> None:
    with pytest.raises(RunError, match=r"data\.global_batch_size=8: does not divide among 3 processes"):
        plan(processes=3)


def test_a_processs_share_must_hold_whole_norm_groups(plan: MakePlan) -> None:
    plan(processes=4)
    with pytest.raises(RunError, match=r"model\.norm_group=4: does not divide the 2 pairs"):
        plan(processes=4, model={"norm_group": 4})


def test_one_is_said_in_the_singular(plan: MakePlan) -> None:
    with pytest.raises(RunError, match=r"relations\.group=3: does not divide the 8 pairs .* on 1 process; give"):
        plan(loss={"relations": {"group": 3}})
    with pytest.raises(RunError, match=r"relations\.group=2: does not divide the 1 pair a process"):
        plan(processes=8, model={"norm_group": 1}, loss={"relations": {"group": 2}}, data={"val": None})


@pytest.mark.parametrize("framework", ["amsps", "clip"])
def test_norm_groups_matter_only_where_there_is_batch_norm(plan: MakePlan, framework: str) -> None:
    assert plan(processes=4, model={"norm_group": 4, "framework": framework}).share == 2


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (3, r"engine\.micro_batch_size=3: does not divide the 4 pairs a process"),
        (1, r"engine\.micro_batch_size=1: does not hold whole groups of model\.norm_group=2"),
    ],
)
def test_micro_batches_hold_whole_groups_and_fill_a_share(plan: MakePlan, size: int, message: str) -> None:
    with pytest.raises(RunError, match=message):
        plan(processes=2, engine={"micro_batch_size": size})


def test_a_share_is_encoded_at_once_unless_it_is_larger_than_a_micro_batch(plan: MakePlan) -> None:
    for size, at_once in ((None, 4), (100, 4), (4, 4), (2, 2)):
        made = plan(processes=2, engine={"micro_batch_size": size})
        assert made.micro_batch_size == at_once
        assert (", 2 pairs at once" in made.summary()[-1]) == (size == 2)
    without_batch_norm = plan(processes=2, engine={"micro_batch_size": 1}, model={"framework": "clip"})
    assert without_batch_norm.micro_batch_size == 1


@pytest.mark.parametrize("key", ["train", "val"])
def test_the_width_of_regions_is_checked(plan: MakePlan, tmp_path: Path, key: str) -> None:
    splits = {}
    for split, width in (("train", 4), ("val", 4), ("wide", 6)):
        records = [with_regions(number, (3, width)) for number in range(12)]
        write_split(records, tmp_path / split, dataset="d", split="train", options=Options())
        splits[split] = str(tmp_path / split)
    wide = splits.pop("wide")
    model = {"image": {"inputs": "regions", "region_width": 4}}
    assert plan(model=model, data=splits).total_steps
    with pytest.raises(RunError, match=rf"region_width=4: the regions of data\.{key}=.*wide have 6 features; set"):
        plan(model=model, data=splits | {key: wide})


@pytest.mark.parametrize(
    ("framework", "loss", "message"),
    [
        ("aahr", {"base": {"weight": 0}}, r"^loss: every term of model\.framework=aahr has weight 0"),
        (
            "aahr",
            {"base": {"weight": 0}, "prototypes": {"weight": 1, "start_step": 3}},
            r"^loss\.prototypes\.start_",
        ),
        ("amsps", {"ahrl": {"weight": 0}}, r"^loss: every term of model\.framework=amsps has weight 0"),
        (
            "amsps",
            {"ahrl": dict.fromkeys(("hard", "candidate", "pair", "mining"), False)},
            r"^loss\.ahrl: every level is off",
        ),
    ],
)
def test_a_loss_that_would_teach_nothing_is_refused(
    plan: MakePlan, framework: str, loss: dict, message: str
) -> None:
    without = {name: {"weight": 0} for name in ("prototypes", "momentum_contrast", "relations", "regulariser")}
    with pytest.raises(RunError, match=message):
        plan(model={"framework": framework}, loss=without | loss)


def test_more_processes_than_samples_are_refused(plan: MakePlan) -> None:
    with pytest.raises(RunError, match="21 processes for 20 samples"):
        plan(processes=21, data={"val": None})
    with pytest.raises(RunError, match=r"val: 6 samples for 8 processes"):
        plan(processes=8, model={"norm_group": 1})


def test_a_batch_larger_than_the_data_is_refused(plan: MakePlan) -> None:
    with pytest.raises(RunError, match=r"data\.global_batch_size=22.*has only 20 samples"):
        plan(data={"global_batch_size": 22})


def test_a_second_call_resumes_from_the_newest_checkpoint_not_the_best(
    plan: MakePlan, tmp_path: Path, add_checkpoint: Callable[..., Path]
) -> None:
    recipe = plan().recipe
    add_checkpoint(tmp_path / "run", 5, 90.0, recipe)
    newest = add_checkpoint(tmp_path / "run", 10, 10.0, recipe)
    made = plan()
    assert made.resume is not None
    assert (made.resume.path, made.resume.step, made.changed) == (newest, 10, ())
    assert (made.resume.progress.loader.epoch, made.resume.progress.loader.position) == (2, 40)
    assert "step 10" in made.summary()[0]
    assert not made.finished
    assert plan(schedule={"epochs": 5}).finished


def test_what_changed_since_the_checkpoint_is_listed(
    plan: MakePlan, tmp_path: Path, add_checkpoint: Callable[..., Path]
) -> None:
    add_checkpoint(tmp_path / "run", 5, recipe=plan().recipe)
    made = plan(schedule={"epochs": 20}, optimizer={"lr": 0.1}, data={"val": None})
    assert made.changed == (
        f"data.val: {plan().recipe.data.val} -> None",
        "optimizer.lr: 0.0005 -> 0.1",
        "schedule.epochs: 10.0 -> 20.0",
    )


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("model", {"norm_group": 4}, r"model\.norm_group=4: .*with model\.norm_group=2"),
        ("model", {"aahr": {"top_k": 1}}, r"model\.aahr\.top_k=1: .*with model\.aahr\.top_k=2"),
        ("run", {"seed": 3}, r"run\.seed=3: .*with run\.seed=0"),
        ("data", {"captions": "first"}, r"data\.captions=first: .*with data\.captions=one"),
        ("run", {"init_from": "elsewhere"}, r"run\.init_from=elsewhere: .*with run\.init_from=None"),
    ],
)
def test_a_resumed_run_cannot_become_another_run(
    plan: MakePlan,
    tmp_path: Path,
    add_checkpoint: Callable[..., Path],
    section: str,
    change: dict,
    message: str,
) -> None:
    add_checkpoint(tmp_path / "run", 5, recipe=plan().recipe)
    with pytest.raises(RunError, match=message):
        plan(**{section: change})


def test_a_moved_run_still_resumes(plan: MakePlan, tmp_path: Path, add_checkpoint: Callable[..., Path]) -> None:
    add_checkpoint(tmp_path / "run", 5, recipe=plan().recipe)
    (tmp_path / "run").rename(tmp_path / "moved")
    made = plan(run={"dir": str(tmp_path / "moved")})
    assert made.resume is not None
    assert made.changed == ()


def test_a_new_run_can_start_from_the_best_checkpoint_of_another(
    plan: MakePlan, tmp_path: Path, add_checkpoint: Callable[..., Path]
) -> None:
    best = add_checkpoint(tmp_path / "first", 5, 90.0)
    add_checkpoint(tmp_path / "first", 10, 10.0)
    first = {"init_from": str(tmp_path / "first")}
    made = plan(run=first)
    assert made.init_from is not None
    assert (made.init_from.path, made.resume) == (best, None)
    assert f"the weights of {best}" in made.summary()[0]
    add_checkpoint(tmp_path / "run", 2, recipe=made.recipe)
    resumed = plan(run=first)  # its own checkpoint counts, even where the other run is gone
    assert resumed.init_from is None
    assert resumed.resume is not None


def test_starting_from_nothing_is_a_users_error(plan: MakePlan, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere: no such run or checkpoint"):
        plan(run={"init_from": str(tmp_path / "nowhere")})


def test_a_run_cannot_go_on_with_other_shards(
    plan: MakePlan, tmp_path: Path, demo: Path, add_checkpoint: Callable[..., Path]
) -> None:
    add_checkpoint(tmp_path / "run", 5, recipe=plan().recipe)
    moved = shutil.copytree(demo / "train", tmp_path / "moved")
    assert plan(data={"train": str(moved)}).resume is not None
    write_split(demo_records("train", 20, 2), tmp_path / "other", dataset="demo", split="train")
    with pytest.raises(RunError, match=r"other: not the shards that .*step-00000005 was trained on"):
        plan(data={"train": str(tmp_path / "other")})


def test_weights_of_a_model_that_computes_something_else_are_refused(
    plan: MakePlan, tmp_path: Path, add_checkpoint: Callable[..., Path]
) -> None:
    recipe = plan().recipe
    add_checkpoint(tmp_path / "pretrained", 5, recipe=recipe)
    start = {"run": {"init_from": str(tmp_path / "pretrained")}}
    free = {"norm_group": 4, "aahr": {"dropout": 0.3}, "image": {"size": 64}}
    assert plan(**start, model=free).init_from is not None
    # the same names and shapes, another function
    with pytest.raises(RunError, match=r"model\.aahr\.top_k=1: .*a checkpoint of another model, with .*top_k=2"):
        plan(**start, model={"aahr": {"top_k": 1}})


def test_a_mixture_is_planned_by_its_visits(plan: MakePlan, demo: Path) -> None:
    train = str(demo / "train")
    mixture = [{"path": train, "weight": 2.0}, {"path": train, "captions": "all"}]
    made = plan(data={"train": mixture, "last_batch": "pad"})
    assert made.train.counts == (40, 100)
    assert made.steps_per_epoch == 18  # 140 visits in batches of 8, the last padded
    lines = [line for line in made.summary() if line.startswith("data")]
    assert [line.rpartition("; ")[2] for line in lines] == ["40 visits an epoch", "100 visits an epoch"]
    shares = [{"path": train, "weight": 3.0}, {"path": train, "weight": 1.0}]
    assert plan(data={"train": shares, "mix": "sampling"}).train.counts == (30, 10)


def test_a_weight_that_comes_to_nothing_is_refused(plan: MakePlan, demo: Path) -> None:
    with pytest.raises(DataError, match="the weight of data set 2 gives it no sample in an epoch"):
        plan(data={"train": [{"path": str(demo / "train")}, {"path": str(demo / "train"), "weight": 0.001}]})


def test_a_run_cannot_go_on_with_other_weights(
    plan: MakePlan, demo: Path, tmp_path: Path, add_checkpoint: Callable[..., Path]
) -> None:
    add_checkpoint(tmp_path / "run", 5, recipe=plan().recipe)
    with pytest.raises(RunError, match="not the shards that"):
        plan(data={"train": [{"path": str(demo / "train"), "weight": 2.0}]})


def test_a_cache_that_is_too_small_for_the_order_is_told(plan: MakePlan, tmp_path: Path, demo: Path) -> None:
    """The manifest is here, its tars are said to lie on a server; nothing is read of them."""
    folder = shutil.copytree(demo / "train", tmp_path / "train")
    table = pq.read_table(folder / "shards.parquet").to_pydict()
    table["path"] = [f"memory://elsewhere/{name}.tar" for name in table["name"]]
    pq.write_table(pa.table(table, schema=SHARD_SCHEMA), folder / "shards.parquet")
    size = sum(table["bytes"]) / 1e9
    for max_gb, warned in ((size * 1.01, False), (size * 0.99, True)):
        lines = plan(data={"train": str(folder), "cache": {"max_gb": max_gb}}).summary()
        assert any("data.cache.max_gb=" in line for line in lines) == warned


def test_a_tilde_in_the_caches_folder_is_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_recipe: Callable[..., Recipe]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_of(tiny_recipe(data={"cache": {"dir": "~/here"}}).data).directory == tmp_path / "here"
