"""Everything that a GPU can tell of boxreg, in one run: `python -m benchmarks.gpu --minutes 8 --out FOLDER`.

The sections, in the order of their worth, each in a process of its own:

- `right.py`: every kernel against eager in float64.
- `waiting.py`: launches a step, no wait for the device, CUDA graphs, torch.compile, streams, threads.
- `fast.py`: time, bandwidth and memory against torchvision and the textbook formula.
- `trainer.py`: the reference trainer on CUDA.

What all of them use:

- `report.py`: records, written as they come; the page that is made of them.
- `device.py`: what only a GPU has: events, graphs, streams, the profiler. `--rehearse` has a stand-in.
- `kernels.py`: compiles kernels for GPUs that are not here.

How to run it on a GPU machine, and what it needs there, is in README.md.
"""
