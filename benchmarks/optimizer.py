"""AdamW a step in its three implementations, on one flat tensor as ZeRO gives it: `optimizer.py [PARAMETERS]`."""

import sys
import time

import torch

ROUNDS = 10


def milliseconds(parameters: int, fused: bool = False, foreach: bool | None = None) -> float:
    weight = torch.nn.Parameter(torch.randn(parameters))
    weight.grad = torch.randn(parameters)
    optimizer = torch.optim.AdamW([weight], fused=fused, foreach=foreach)
    optimizer.step()
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - begin)
    return 1000 * sorted(times)[ROUNDS // 2]


def main(parameters: int = 4_200_000) -> None:
    torch.set_num_threads(1)
    default = milliseconds(parameters)
    others = {"foreach": milliseconds(parameters, foreach=True), "fused": milliseconds(parameters, fused=True)}
    for name, other in others.items():
        print(f"default {default:.1f} ms, {name} {other:.1f} ms: {default / other:.1f} times as fast")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
