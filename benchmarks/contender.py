"""The program of a benchmark's child process: runs one phase of one contender and writes its measurements."""

import json
import os
import sys

from task import Task


def main() -> None:
    task = Task(**json.loads(sys.argv[1]))
    if task.phase == "prepare" and hasattr(os, "sched_setaffinity"):
        # Before torch is imported, because threads that already run would keep the old affinity.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import ours
    import recipe

    contender = recipe if task.contender in ("recipe", "fair") else ours
    measured = contender.prepare(task) if task.phase == "prepare" else contender.train(task)
    (task.path / f"{task.phase}.json").write_text(json.dumps(measured, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
