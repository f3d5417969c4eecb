"""The recipes that come with the package: what their headers say, what they build, and two steps of each."""

import json
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig

import model  # noqa: F401  (lets torchvision, and so open_clip, import beside a CPU build of torch)
from model.encoders import DualEncoder
from model.terms.build import build_terms
from shards.convert import Options, write_split
from shards.sources.scan import read_scan
from shards.tools.concepts import Candidate, Vocabulary, write_vocabulary
from tests.conftest import ENVIRONMENT, REPOSITORY
from tests.model.hub import save_bert
from tests.shards.sourced import picture, records
from trainer.engine import build_encoders
from trainer.evaluation.published import published
from trainer.inputs import image_side
from trainer.recipe import SHIPPED, flatten, load_recipe, shipped_recipes

NAMES = [name for name, _ in shipped_recipes()]
PAPERS_OWN = [name for name in NAMES if name.startswith("papers/")]
RUNS = [*(name for name in NAMES if name.startswith(("pretrain/", "finetune/"))), *PAPERS_OWN]
TOWERS = [[], *([name] for name in NAMES if name.startswith("towers/"))]
METHODS = [[], *([name] for name in NAMES if name.startswith("methods/"))]


def header(name: str) -> str:
    """The comment that a recipe begins with, after those of the recipes that it extends."""
    text = (SHIPPED / f"{name}.yaml").read_text()
    found = re.search(r"^extends: (.*)\.yaml$", text, re.MULTILINE)
    below = "" if found is None else ((SHIPPED / name).parent / found[1]).resolve().relative_to(SHIPPED).as_posix()
    lines = (line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    return f"{header(below) if below else ''}\n" + "\n".join(lines)


def last(name: str, field: str) -> str:
    found = re.findall(rf"^{field}: (.*(?:\n(?!\S+:|Judged by:).+)*)", header(name), re.MULTILINE)
    assert found, f"{name} says nothing of {field}"
    return str(found[-1])


@pytest.mark.parametrize("name", RUNS)
def test_a_header_names_data_hardware_time_and_the_row_it_is_judged_by(name: str) -> None:
    data, judged = last(name, "Data"), last(name, "Judged by")
    recipe = load_recipe(Path(name))
    train = recipe.data.train
    for path in [train] if isinstance(train, str) else [part.path for part in train]:
        assert path.split("/")[1] in data
    assert re.search(r"estimate", last(name, "Time"))
    rows = {row.name for rows in published().values() for row in rows}
    named = re.findall(r'the row "([^"]+)"|the row ([A-Z]\w+)', judged)
    assert all((one or two) in rows for one, two in named)
    assert named or "model.framework=clip" in judged


@pytest.mark.parametrize(
    ("name", "towers"),
    [*product([name for name in RUNS if name not in PAPERS_OWN], TOWERS), *product(PAPERS_OWN, [[]])],
)
def test_the_batch_divides_on_the_hardware_that_the_header_names(name: str, towers: list[str]) -> None:
    found = re.findall(r"(?:(\d+) nodes of )?(\d+) A100", header(name))
    nodes, gpus = found[-1]
    recipe = load_recipe(Path(name), towers)
    share, rest = divmod(recipe.data.global_batch_size, int(nodes or 1) * int(gpus))
    micro = min(recipe.engine.micro_batch_size or share, share)
    assert (rest, share % recipe.model.norm_group, share % micro, micro % recipe.model.norm_group) == (0, 0, 0, 0)
    assert recipe.loss.queue.size >= recipe.data.global_batch_size


PAPERS: dict[str, dict[str, Any]] = {
    # arguments.py and graph_lib.py of AAHR's code, and what its two run_*.sh set; consensus: train_*.py of CVSE's
    "papers/flickr30k": {
        "data.captions": "all",
        "data.global_batch_size": 128,
        "data.mask_words": 0.2,
        "data.drop_regions": 0.2,
        "model.framework": "aahr",
        "model.architecture": "ViT-B-32",
        "model.pretrained": "laion2b_s34b_b79k",
        "model.image.inputs": "pixels+regions",
        "model.image.region_width": 2048,
        "model.image.freeze": "all",
        "model.text.towers": "clip+transformer",
        "model.text.freeze": "all",
        "model.text.transformer.name": "bert-base-uncased",
        "model.text.transformer.freeze": None,
        "model.consensus.instance_share": 0.85,
        "model.consensus.label_share": 0.35,
        "model.embed_dim": 1024,
        "model.norm_group": 128,
        "model.aahr.fragment_heads": 16,
        "model.aahr.pooling_heads": 8,
        "model.aahr.dropout": 0.1,
        "model.aahr.top_k": 2,
        "model.aahr.max_weight": 0.8,
        "loss.base.negatives": "distance-weighted",
        "loss.base.margin": 0.2,
        "loss.base.cutoff": 1.7,
        "loss.base.density_dimension": 512,
        "loss.base.weight": 128,
        "loss.prototypes.weight": 0.2,
        "loss.prototypes.count": 384,
        "loss.prototypes.start_step": 2200,
        "loss.prototypes.temperature": 0.1,
        "loss.prototypes.sinkhorn_epsilon": 0.1,
        "loss.prototypes.sinkhorn_iterations": 3,
        "loss.momentum_contrast.weight": 1,
        "loss.momentum_contrast.temperature": 0.07,
        "loss.queue.size": 2048,
        "loss.momentum.decay": 0.999,
        "loss.momentum.ramp": "constant",
        "loss.relations.weight": 128,
        "loss.relations.start_step": 8000,
        "loss.relations.mask_weight": 1,
        "loss.relations.heads": 16,
        "loss.relations.dropout": 0.1,
        "loss.relations.gcn_dropout": 0.6,
        "loss.regulariser.weight": 10,
        "loss.regulariser.start_step": 8000,
        "optimizer.lr": 5e-4,
        "optimizer.tower_lr_scale": 0.1,
        "optimizer.layer_decay": 1,
        "optimizer.tower_start_step": 0,
        "optimizer.weight_decay": 1e-4,
        "optimizer.betas": [0.9, 0.999],
        "optimizer.gradient_clipping": 2,
        "schedule.epochs": 40,
        "schedule.warmup_steps": 0,
        "schedule.drop_epochs": [15, 25],
    },
}
PAPERS["papers/coco"] = PAPERS["papers/flickr30k"] | {
    "data.global_batch_size": 256,
    "model.consensus.instance_share": 0.9,
    "model.consensus.label_share": 0.4,
    "model.norm_group": 256,
    "loss.base.cutoff": 1.9,
    "loss.base.weight": 256,
    "loss.prototypes.count": 768,
    "loss.relations.weight": 256,
    "loss.relations.mask_weight": 1.5,
}


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_setting_is_what_is_published(name: str) -> None:
    flat = flatten(load_recipe(Path(name)).model_dump())
    assert {key: flat[key] for key in PAPERS[name]} == PAPERS[name]


def test_what_the_fine_tuning_takes_over_from_the_papers() -> None:
    for data in ("flickr30k", "coco"):
        paper, ours = (flatten(load_recipe(Path(f"{kind}/{data}")).model_dump()) for kind in ("papers", "finetune"))
        for key in (
            *("data.captions", "loss.base.margin", "loss.prototypes.count", "loss.prototypes.weight"),
            *("model.consensus.instance_share", "model.consensus.label_share"),
            *("loss.momentum_contrast.temperature", "loss.momentum.decay", "loss.relations.mask_weight"),
            *("loss.regulariser.weight", "optimizer.tower_lr_scale", "optimizer.gradient_clipping"),
        ):
            assert ours[key] == paper[key], key


def concepts(path: Path) -> Path:
    """A vocabulary of two words."""
    words = tuple(Candidate(word, "object", (word,)) for word in ("dog", "image"))
    counts, together = np.array([4, 4]), np.array([[0, 1], [1, 0]])
    write_vocabulary(path, Vocabulary(words, counts, together, 10, ()))
    return path


@pytest.mark.parametrize(("towers", "method"), [*product([*TOWERS, ["papers/flickr30k"]], METHODS)])
def test_every_pair_of_towers_and_method_builds_and_embeds(
    tmp_path: Path, towers: list[str], method: list[str]
) -> None:
    """On tensors without values: names and widths fit, and nothing is computed or downloaded."""
    BertConfig().save_pretrained(tmp_path / "bert")
    small = [f"model.text.transformer.name={tmp_path / 'bert'}", "model.norm_group=2", "data.global_batch_size=4"]
    if method:
        small.append(f"model.consensus.concepts={concepts(tmp_path / 'concepts.json')}")
    base = [Path(towers[0])] if towers and towers[0].startswith("papers") else [Path("pretrain/cc3m")]
    recipe = load_recipe(base[0], [*(towers if base[0].parts[0] == "pretrain" else []), *method, *small])
    config, side = recipe.model, image_side(recipe.model)
    with torch.device("meta"):
        encoders = DualEncoder(config, pretrained=False).to("meta").train()
        terms = build_terms(config, recipe.loss, encoders.embed_dim, 1)
        regions = torch.empty(4, 36, config.image.region_width) if config.reads_regions else None
        images = encoders.encode_image(torch.empty(4, side, side, 3, dtype=torch.uint8), regions)
        length = 2 * 16 if config.text.towers == "clip+transformer" else 16
        words = torch.zeros(4, length + encoders.num_concepts, dtype=torch.int64)
        texts = encoders.encode_text(words)
    assert images.shape == texts.shape == (4, 1024)
    ranks = {"amsps": "ranking"}.get(config.framework, "relations")
    assert ranks in terms


TINY = [
    *("model.architecture=itm-tiny", "model.pretrained=null", "model.embed_dim=32", "model.norm_group=4"),
    *("model.aahr.fragment_heads=4", "model.aahr.pooling_heads=2", "model.text.transformer.max_length=16"),
    *("data.global_batch_size=8", "data.workers=0", "engine.micro_batch_size=4", "loss.queue.size=8"),
    *("loss.prototypes.count=6", "loss.prototypes.start_step=1", "loss.relations.start_step=1"),
    *("loss.regulariser.start_step=1", "loss.relations.heads=4", "schedule.warmup_steps=0"),
    *("log.every_steps=1", "log.tensorboard=false", "evaluation.every_epochs=10", "checkpoint.every_epochs=10"),
]
CHAINS = {
    # a pretraining run, and the fine-tuning that starts from it, each with towers and method laid over
    "cc3m": ("pretrain/cc3m", None, []),
    "flickr30k": ("finetune/flickr30k", "cc3m", ["model.image.size=64"]),
    "cc12m": ("pretrain/cc12m", None, ["towers/vit_b16", "methods/both"]),
    "coco": ("finetune/coco", "cc12m", ["towers/vit_b16", "methods/both"]),
    "laion": ("pretrain/laion", None, ["towers/vit_l14", "methods/amsps"]),
    "flickr30k_open_clip": ("finetune/flickr30k_open_clip", None, ["methods/amsps"]),
    "coco_open_clip": ("finetune/coco_open_clip", None, ["methods/both"]),
    "papers_flickr30k": ("papers/flickr30k", None, []),
    "papers_coco": ("papers/coco", None, ["methods/both"]),
}


def test_every_recipe_of_a_run_is_trained_below() -> None:
    assert {name for name, _, _ in CHAINS.values()} == set(RUNS)
    laid = {one for _, _, more in CHAINS.values() for one in more if "=" not in one}
    assert laid == {one for more in TOWERS + METHODS for one in more}


def write_regions(root: Path) -> Path:
    """Sixteen pictures with regions and five captions each, as SCAN and AAHR's code have them, as shards."""
    (root / "scan").mkdir(parents=True)
    features = np.random.default_rng(0).standard_normal((16, 6, 2048)).astype(np.float32)
    np.save(root / "scan/train_ims.npy", features)
    captions = [f"caption {n}, a dog running . of image {image}\n" for image in range(16) for n in range(5)]
    (root / "scan/train_caps.txt").write_text("".join(captions))
    (root / "scan/id_mapping.json").write_text(json.dumps([f"{image}.jpg" for image in range(16)]))
    for image in range(16):
        picture(root / f"images/{image}.jpg", image)
    source = read_scan(root / "scan", root / "images", dataset="flickr30k")
    write_split(records(source), root / "train", dataset="flickr30k", split="train", options=Options())
    return root / "train"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the runs of `CHAINS`, two steps each, of all losses."""
    root = tmp_path_factory.mktemp("recipes")
    data, bert, words = write_regions(root / "data"), save_bert(root / "bert"), concepts(root / "concepts.json")
    jobs = []
    for run, (name, start, laid) in CHAINS.items():
        recipe = load_recipe(Path(name), laid)
        train = recipe.data.train
        parts = [data] if isinstance(train, str) else [data] * len(train)
        visits = len(parts) * 16 * (5 if recipe.data.captions == "all" else 1)
        settings = [
            f"run.dir={root / run}",
            f"data.train={json.dumps([{'path': str(part)} for part in parts])}",
            "data.val=null",
            f"schedule.epochs={2 * 8 / visits}",
            f"model.text.transformer.name={bert}",
        ]
        if start:
            settings.append(f"run.init_from={root / start}")
        if recipe.model.has_consensus:
            settings.append(f"model.consensus.concepts={words}")
        if recipe.schedule.drop_epochs:
            settings.append(f"schedule.drop_epochs=[{8 / visits}]")
        if recipe.optimizer.tower_start_step:
            settings.append("optimizer.tower_start_step=1")
        jobs.append([name, *laid, *TINY, *settings])
    (root / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.recipe_runs", root / "jobs.json"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return root


@pytest.mark.parametrize("run", CHAINS)
def test_a_recipe_trains_with_all_its_losses(runs: Path, run: str) -> None:
    rows = [json.loads(line) for line in (runs / run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(np.isfinite(row["loss"]) for row in rows)
    framework = load_recipe(runs / run / "recipe.yaml").model.framework
    terms = {"base"} if framework == "aahr" else {"ahrl"}
    if framework != "amsps":
        terms |= {"prototypes", "momentum_contrast", "relations", "regulariser"}
    assert terms <= {key.removeprefix("loss_") for key in rows[-1]}, rows[-1].keys()


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints/step-00000002/weights.safetensors")


def moved(run: Path, part: str) -> list[bool]:
    """Of each weight whose name begins so, whether two steps changed it."""
    recipe = load_recipe(run / "recipe.yaml")
    before = build_encoders(recipe.model, recipe.run.seed).state_dict()
    after = {name: tensor for name, tensor in weights(run).items() if name.startswith(f"encoders.{part}")}
    assert after, part
    return [not torch.equal(before[name.removeprefix("encoders.")], tensor) for name, tensor in after.items()]


def test_in_the_papers_setting_clip_is_frozen_and_bert_and_the_heads_learn(runs: Path) -> None:
    run = runs / "papers_flickr30k"
    assert not any(moved(run, "image_tower."))
    assert not any(moved(run, "text_tower.clip."))
    assert any(moved(run, "text_tower.transformer.model.encoder."))
    assert any(moved(run, "image_head."))
    assert any(moved(run, "text_head."))
    rates = [json.loads(line)["lr"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([5e-4, 5e-5])


def test_fine_tuning_goes_on_with_larger_pictures(runs: Path) -> None:
    name = "encoders.image_tower.visual.positional_embedding"
    before, after = weights(runs / "cc3m")[name], weights(runs / "flickr30k")[name]
    assert (len(before), len(after)) == (1 + 4, 1 + 16)
    # the class token's is taken as it is, and then learned in two small steps
    torch.testing.assert_close(after[0], before[0], atol=1e-3, rtol=0)
