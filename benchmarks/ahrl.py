"""AHRL in tiles beside whole matrices with autograd, value and gradient: `ahrl.py [PAIRS QUEUE WIDTH]`.

Each runs in a process of its own, so that peaks of memory are its own.
"""

import multiprocessing as mp
import resource
import sys
import time
from collections.abc import Callable

import torch
from torch.nn.functional import log_softmax, normalize

from model.config import AhrlConfig
from model.losses.ahrl import ahrl
from model.losses.pairs import Memory, Pairs

ROUNDS = 3
CONFIG = AhrlConfig()
THRESHOLD = torch.tensor(0.12)


def pairs(number: int, width: int, first_id: int) -> Pairs:
    images, texts = (normalize(torch.randn(number, width), dim=1) for _ in range(2))
    ids = torch.arange(first_id, first_id + number)
    return Pairs(images, texts, ids, torch.ones_like(ids, dtype=torch.bool))


def tiled(own: Pairs, keys: Pairs, queue: Pairs) -> torch.Tensor:
    memory = Memory(keys, keys, queue)
    places = torch.arange(len(own))
    return ahrl(own, own, places, memory, THRESHOLD, CONFIG, seed=0, step=0).loss.mean()


def whole(own: Pairs, keys: Pairs, queue: Pairs) -> torch.Tensor:
    """The same levels; candidates are drawn by torch's generator."""
    b = len(own)
    all_images, all_texts = torch.cat([keys.images, queue.images]), torch.cat([keys.texts, queue.texts])
    agreement = torch.minimum(keys.images @ all_images.T, keys.texts @ all_texts.T)
    agreement = torch.where(agreement >= THRESHOLD, agreement, 0).fill_diagonal_(1)
    match = (own.images * own.texts).sum(dim=1)
    total, drawn = torch.zeros(b), []
    for anchors, items, all_keys in ((own.images, own.texts, all_texts), (own.texts, own.images, all_images)):
        similarity = anchors @ all_keys.T
        target = agreement / agreement.sum(dim=1, keepdim=True)
        mining = -(target * log_softmax(similarity / CONFIG.temperature, dim=1)).sum(dim=1)
        hardest = (anchors @ items.T).masked_fill(agreement[:, :b] > 0, -1).amax(dim=1)
        similar = similarity[:, b:].masked_fill(agreement[:, b:] > 0, -1)
        values, slots = similar.topk(CONFIG.candidates, dim=1)
        place = torch.randint(CONFIG.candidates, (b, 1))
        candidate = values.gather(1, place).squeeze(1)
        drawn.append(slots.gather(1, place).squeeze(1))
        penalty = (CONFIG.beta - (candidate - hardest) / CONFIG.alpha).clamp(0, CONFIG.max_penalty).detach()
        total = total + penalty * (CONFIG.margin + hardest - match).clamp(min=0)
        total = total + (candidate - match).clamp(min=0) + CONFIG.mining_weight * mining
    between = (queue.images[drawn[1]] * queue.texts[drawn[0]]).sum(dim=1)
    return (total + 2 * (between - match).clamp(min=0)).mean()


def measure(loss: Callable[[Pairs, Pairs, Pairs], torch.Tensor], number: int, size: int, width: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    own, keys, queue = pairs(number, width, 0), pairs(number, width, 0), pairs(size, width, number)
    own.images.requires_grad_()
    own.texts.requires_grad_()
    before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        value = loss(own, keys, queue)
        value.backward()
        times.append(time.perf_counter() - begin)
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{loss.__name__}: {min(times):.2f} s, {more:,.0f} MiB over its inputs, loss {value.item():.4f}")


def main(number: int = 128, size: int = 65_536, width: int = 512) -> None:
    for loss in (tiled, whole):
        process = mp.get_context("spawn").Process(target=measure, args=(loss, number, size, width))
        process.start()
        process.join()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
