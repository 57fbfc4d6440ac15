"""Toy images drawn a second on one thread: `python -m benchmarks.toy_data`."""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import numpy as np
import torch

from reference_trainer.data.toy import ToyImages

from .machine import processor


def images_per_second(side: int, count: int, most: int) -> float:
    images = ToyImages(count, side, most=most)
    start = time.perf_counter()
    for index in range(count):
        images[index]
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=128, help="side of a image in pixels")
    parser.add_argument("--objects", type=int, default=1, help="most objects in a image")
    parser.add_argument("--count", type=int, default=300, help="images a repeat")
    parser.add_argument("--repeats", type=int, default=7, help="the median of so many is printed")
    args = parser.parse_args()

    torch.set_num_threads(1)
    images_per_second(args.side, 10, args.objects)
    rates = sorted(images_per_second(args.side, args.count, args.objects) for _ in range(args.repeats))
    print(f"{processor()}, {platform.system()} {platform.release()}")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}")
    median = statistics.median(rates)
    what = f"side {args.side}, up to {args.objects} objects"
    print(f"{what}: {median:.0f} images/s (slowest {rates[0]:.0f}, fastest {rates[-1]:.0f})")


if __name__ == "__main__":
    main()
