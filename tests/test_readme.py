"""What the README shows, run as it stands there."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_example_runs_and_trains() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)

    head = names["model"][-1]
    assert head.projection.bias.grad.isfinite().all()
    assert head.projection.bias.grad.abs().sum() > 0


def test_each_command_is_one_line() -> None:
    commands = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    assert all(command.count("\n") == 1 for command in commands)
    assert sum("reference_trainer train" in command for command in commands) >= 1
    assert sum("pytest" in command for command in commands) == 1
