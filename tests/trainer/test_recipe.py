"""Recipes: inheritance, overrides, and errors of one line that name the key."""

import json
from pathlib import Path

import pytest
import yaml

from trainer.config import Recipe
from trainer.errors import RunError
from trainer.recipe import dump_recipe, flatten, load_recipe, recipe_keys, shipped_recipes

CONFIGS = Path(__file__).parents[2] / "configs"


def write(folder: Path, **recipes: str) -> Path:
    """Write each recipe as NAME.yaml; the path of the last one."""
    for name, text in recipes.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return path


def error_of(path: Path, *overrides: str) -> str:
    with pytest.raises(RunError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    return write(tmp_path, empty="{}")


def test_an_empty_mapping_gives_the_defaults(empty: Path) -> None:
    assert load_recipe(empty) == Recipe()


def test_a_chain_of_recipes_is_merged_section_by_section(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        grandparent="optimizer: {lr: 0.1, weight_decay: 0.2, eps: 0.3}\nrun: {seed: 5}",
        parent="extends: grandparent.yaml\noptimizer: {lr: 0.01, weight_decay: 0.02}",
        child="extends: parent.yaml\noptimizer: {lr: 0.001}\nschedule: {epochs: 3}",
    )
    recipe = load_recipe(path, ["optimizer.lr=7"])
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay, recipe.optimizer.eps) == (7, 0.02, 0.3)
    assert (recipe.run.seed, recipe.schedule.epochs) == (5, 3)
    assert load_recipe(path).optimizer.lr == 0.001


def test_recipes_are_laid_over_in_order(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        below="run: {seed: 1}\nmodel: {embed_dim: 64}",
        deeper="model: {architecture: ViT-L-14}",
        over="extends: deeper.yaml\nmodel: {norm_group: 64}\nrun: {seed: 2}",
        base="run: {seed: 0}\noptimizer: {lr: 0.5}",
    )
    below, over = (str(path.with_stem(name)) for name in ("below", "over"))
    recipe = load_recipe(path, [below, over])
    assert (recipe.run.seed, recipe.optimizer.lr, recipe.model.embed_dim) == (2, 0.5, 64)
    assert (recipe.model.architecture, recipe.model.norm_group) == ("ViT-L-14", 64)
    assert load_recipe(path, [over, "run.seed=7", below]).run.seed == 1
    assert load_recipe(path, [over, below, "run.seed=7"]).run.seed == 7


def test_shipped_recipes_are_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Path("flickr8k")) == load_recipe(CONFIGS / "flickr8k.yaml")
    recipe = load_recipe(Path("pretrain/cc3m"), ["towers/vit_b16", "data.global_batch_size=1024"])
    assert (recipe.model.architecture, recipe.data.global_batch_size) == ("ViT-B-16", 1024)
    (tmp_path / "flickr8k").mkdir()  # a folder of data
    assert load_recipe(Path("flickr8k")).model.architecture == "itm-small"
    assert "no such recipe" in error_of(Path("pretrain/cc4m"))
    assert "no such recipe; nearest: towers/vit_b16;" in error_of(Path("flickr8k"), "towers/vit_b61")
    assert "no such recipe; those" in error_of(Path("flickr8k"), "q/w")
    assert "none.yaml: no such recipe" in error_of(Path("flickr8k"), "none.yaml")


def test_the_list_names_every_shipped_recipe_with_what_it_is() -> None:
    listed = dict(shipped_recipes())
    assert listed.keys() == {
        path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml")
    }
    assert listed["towers/vit_b16"] == "To be laid over another recipe: towers of ViT-B/16"
    assert all(listed.values())


def test_extends_is_relative_to_the_file_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "base.yaml").write_text("run: {seed: 9}")
    path = write(tmp_path, child="extends: far/base.yaml")
    assert load_recipe(path).run.seed == 9


@pytest.mark.parametrize("back", ["b.yaml", "./b.yaml", "../{folder}/b.yaml"])
def test_a_cycle_is_named(tmp_path: Path, back: str) -> None:
    path = write(tmp_path, b="extends: a.yaml", a=f"extends: {back.format(folder=tmp_path.name)}")
    assert "b.yaml" in error_of(path)
    assert "extends it in turn" in error_of(path)
    assert "in turn" in error_of(write(tmp_path, own="extends: own.yaml"))


def test_a_missing_base_names_itself_and_who_wants_it(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, child="extends: nowhere.yaml"))
    assert "nowhere.yaml: no such recipe" in message
    assert "extended by" in message
    assert "child.yaml" in message


def test_a_missing_recipe_points_to_the_shipped_ones(tmp_path: Path) -> None:
    assert "no such recipe; those that come with it: itm recipe --list" in error_of(tmp_path / "x.yaml")


def test_extends_must_be_one_name(tmp_path: Path) -> None:
    assert "give one file name" in error_of(write(tmp_path, child="extends: [a.yaml, b.yaml]"))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr=1e-4", ("optimizer.lr", 1e-4)),
        ("optimizer.lr=5E-3", ("optimizer.lr", 5e-3)),
        ("optimizer.lr=.5e-3", ("optimizer.lr", 5e-4)),
        ("optimizer.lr=1.e+2", ("optimizer.lr", 100.0)),
        ("optimizer.lr=2", ("optimizer.lr", 2)),
        ("optimizer.betas=[0.8, 0.9]", ("optimizer.betas", [0.8, 0.9])),
        ("run.dir=runs/a=b", ("run.dir", "runs/a=b")),
        ("run.dir=1e-4 runs", ("run.dir", "1e-4 runs")),
        ("data.val=null", ("data.val", None)),
        ("log.tensorboard=false", ("log.tensorboard", False)),
        ("model.aahr.top_k=3", ("model.aahr.top_k", 3)),
        ("loss.base.all_negatives_steps=0", ("loss.base.all_negatives_steps", 0)),
    ],
)
def test_an_override_reaches_its_key(empty: Path, override: str, expected: tuple[str, object]) -> None:
    key, value = expected
    before, after = flatten(Recipe().model_dump()), flatten(load_recipe(empty, [override]).model_dump())
    assert after == before | {key: value}


def test_the_last_override_of_a_key_holds(empty: Path) -> None:
    assert load_recipe(empty, ["run.seed=1", "run.seed=2"]).run.seed == 2


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optimizer.learning_rate=1", ["optimizer.learning_rate=1: no such key", "nearest: optimizer."]),
        ("optimiser.lr=1", ["optimiser.lr=1: no such key", "nearest: optimizer.lr"]),
        ("loss.bass.margin=0.1", ["loss.bass.margin=0.1: no such key", "nearest: loss.base.margin"]),
        ("loss.bass={}", ["loss.bass={}: no such key", "nearest: loss.base."]),
        (".lr=3", [".lr=3: no such key", "nearest: optimizer.lr"]),
        ("lr=1", ["lr=1: no such key", "nearest: optimizer.lr"]),
        ("data.batch_size=8", ["data.batch_size=8", "nearest: data.global_batch_size"]),
        ("schedule.seed=1", ["schedule.seed=1: no such key", "nearest: run.seed"]),
        ("run.lr=1", ["run.lr=1: no such key", "nearest: optimizer.lr"]),
        ("model.aahr.topk=8", ["model.aahr.topk=8", "nearest: model.aahr.top_k"]),
        ("optimizer.lr=fast", ["optimizer.lr='fast': should be a valid number"]),
        ("optimizer.lr=-1", ["optimizer.lr=-1: should be greater than 0"]),
        ("optimizer.lr=.inf", ["optimizer.lr=inf: should be a finite number"]),
        ("optimizer.lr=.nan", ["optimizer.lr=nan: should be"]),
        ("loss.base.margin=.inf", ["loss.base.margin=inf: should be a finite number"]),
        ("optimizer.betas=[0.9]", ["optimizer.betas=[0.9]: List should have at least 2 items"]),
        ("optimizer.betas=[0.9, 1.0]", ["optimizer.betas.1=1.0: should be less than 1"]),
        ("run.seed=1.5", ["run.seed=1.5: should be a valid integer"]),
        ("run.seed=true", ["run.seed=True: should be a valid integer"]),
        ("run.dir=5", ["run.dir=5: should be a valid string"]),
        ("engine.zero_stage=4", ["engine.zero_stage=4: should be 0, 1, 2 or 3"]),
        ("engine.precision=fp16", ["engine.precision='fp16': should be 'float32', 'bfloat16' or 'float16'"]),
        ("engine.offload_parameters=cpu", [": engine.offload_parameters: needs engine.zero_stage=3"]),
        ("optimizer=3", ["optimizer=3: should be a section with keys, such as optimizer.lr"]),
        ("loss.base=0.5", ["loss.base=0.5: should be a section with keys, such as loss.base.weight"]),
        ("data.train.path=x", ["data.train: {'path': 'x'}: give a folder's path, or a list of {path, weight"]),
        ("data.train=[3]", ["data.train.0=3: should be a section with keys, such as data.train.0.path"]),
        ("data.train=[{weight: 1.0}]", ["data.train.0.path: not given"]),
        ("data.train=[{path: 3}]", ["data.train.0.path=3: should be a valid string"]),
        ("model.embed_dim=100", ["model.embed_dim: 100 is not divisible by 16 model.aahr.fragment_heads"]),
        ("data.global_batch_size=100", ["model.norm_group: 128 does not divide data.global_batch_size 100"]),
        ("run.seed", ["override 'run.seed': write key=value"]),
        ("=5", ["override '=5': write key=value"]),
        ("run.dir=[a", ["override 'run.dir=[a': the value is not valid YAML, line 1, column 3: expected"]),
    ],
)
def test_a_wrong_override_is_an_error_that_says_which(empty: Path, override: str, parts: list[str]) -> None:
    message = error_of(empty, override)
    assert all(part in message for part in parts), message
    assert "\n" not in message
    assert "more" not in message


def test_an_override_into_a_value_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, recipe="run: 3")
    assert "override 'run.seed=1': run is a value, not a section" in error_of(path, "run.seed=1")


def test_odd_embeddings_are_refused(empty: Path) -> None:
    message = error_of(empty, "model.aahr.fragment_heads=1", "model.embed_dim=33")
    assert "model.embed_dim: 33 is odd" in message


@pytest.mark.parametrize("framework", ["amsps", "clip", "siglip"])
def test_what_only_aahr_has_refuses_no_other_framework(empty: Path, framework: str) -> None:
    recipe = load_recipe(
        empty, [f"model.framework={framework}", "model.embed_dim=601", "data.global_batch_size=100"]
    )
    assert (recipe.model.embed_dim, recipe.data.global_batch_size) == (601, 100)
    message = error_of(empty, "model.framework=aahr+amsps", "data.global_batch_size=100")
    assert "model.norm_group: 128 does not divide" in message


def test_an_error_names_the_file_and_counts_the_others(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, wrong="run: {sead: 1}\nlog: {every_steps: 0}"))
    assert "wrong.yaml: run.sead=1: no such key; nearest: run.seed (and 1 more)" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"run: {seed: 1}\nrun: {seed: 2}", "the key 'run' is given twice"),
        (b"run: {seed: 1, seed: 2}", "the key 'seed' is given twice"),
        (b"run: [", "not valid YAML, line 1, column 7: expected the node content, but found '<stream end>'"),
        (b"run:\n  dir: [a\n", "not valid YAML, line 3, column 1: expected ',' or ']'"),
        (b"run: \0", "not valid YAML: unacceptable character"),
        (b"- run", "a recipe is a mapping of sections, found list"),
        (b"", "a recipe is a mapping of sections, found NoneType"),
        (b"run: {dir: \xff\xfe}", "not a recipe"),
        (b"run: !!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_a_users_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.yaml").write_bytes(content)
    assert message in error_of(tmp_path / "bad.yaml")
    assert "bad.yaml" in error_of(tmp_path / "bad.yaml")
    assert "\n" not in error_of(tmp_path / "bad.yaml")


def test_a_path_that_cannot_be_a_file_is_a_users_error(tmp_path: Path, empty: Path) -> None:
    assert "not a recipe" in error_of(tmp_path)
    assert "not a recipe" in error_of(empty / "below.yaml")


def test_dumping_and_loading_gives_an_equal_recipe(tmp_path: Path, empty: Path) -> None:
    overrides = ["optimizer.lr=1e-7", "run.dir='5'", "data.val='ä: #b'", "run.seed=3", "data.train='null'"]
    recipe = load_recipe(empty, [*overrides, "loss.base.all_negatives_steps=12", "optimizer.betas=[0.5, 0.999]"])
    assert recipe != Recipe()
    path = write(tmp_path, dumped=dump_recipe(recipe))
    assert load_recipe(path) == recipe


def test_a_dump_names_every_key() -> None:
    assert flatten(yaml.safe_load(dump_recipe(Recipe()))).keys() == recipe_keys().keys()


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_recipe_loads(path: Path) -> None:
    load_recipe(path)


def test_every_key_that_is_listed_can_be_set(empty: Path) -> None:
    defaults = flatten(Recipe().model_dump())
    assert recipe_keys().keys() == defaults.keys()
    overrides = [f"{key}={json.dumps(value)}" for key, value in defaults.items()]
    assert load_recipe(empty, overrides) == Recipe()


def test_meanings_come_with_the_keys() -> None:
    assert recipe_keys()["optimizer.gradient_clipping"] == "largest gradient norm; 0 clips nothing"


def test_a_recipe_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().run.seed = 3  # type: ignore[misc]
