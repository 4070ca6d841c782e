"""``bash run OUT [MINUTES]``: every job within the minutes, and a summary."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from math import ceil, inf
from pathlib import Path
from threading import Lock, Thread
from typing import Any

#: Exit statuses besides those of the verdict, as of `loss-balancers`: 1 is said of results alone.
USAGE_ERROR, UNEXPECTED = 2, 70

try:
    from gpu_kit.figures import read, record
    from gpu_kit.jobs import ABSENT, Part, parts
    from gpu_kit.machine import basics
    from gpu_kit.summary import INCOMPLETE, summary, verdict
    from loss_balancers.parity.files import write_text
    from loss_balancers.parity.streams import make_streams_last
except ImportError as error:
    print(
        f"bash run: error: PYTHON must be an interpreter that has what README.md lists. {sys.executable} does not: {error}.",
        file=sys.stderr,
    )
    sys.exit(USAGE_ERROR)

#: A job that has less than this left is not begun: to load a framework takes as long.
LEAST = 3.0


class Kit:
    """One run of the kit."""

    def __init__(self, folder: Path, device: str, minutes: float, only: Sequence[str]) -> None:
        self._folder, self._device, self._only = folder, device, only
        self._seconds = minutes * 60
        self._start = time.monotonic()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock, self._stopped = Lock(), False

    def run(self) -> None:
        """All parts, one after the other."""
        for part in parts(self._device):
            queues = [(wanted, queue.at_once) for queue in part.queues if (wanted := self._wanted(queue.jobs))]
            threads = [
                Thread(target=self._worker, args=(part, wanted, at_once), daemon=True)
                for wanted, at_once in queues
                for _ in range(min(at_once, len(wanted)))
            ]
            if threads:
                print(f"==> {part.title} ({self._since():.0f} s)", flush=True)
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def _wanted(self, jobs: Sequence[str]) -> deque[str]:
        return deque(job for job in jobs if not self._only or job in self._only or job.partition(".")[0] in self._only)

    def stop(self) -> None:
        """Ends the jobs that run."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                _kill(process)

    def _since(self) -> float:
        return time.monotonic() - self._start

    def _worker(self, part: Part, queue: deque[str], at_once: int) -> None:
        """Takes a job after the other. Workers of one queue share it."""
        while True:
            with self._lock:
                if self._stopped or not queue:
                    return
                job, rest = queue.popleft(), len(queue)
            left = part.until * self._seconds - self._since()
            # One that hangs must leave something to those after it: nobody gets more than twice its share.
            limit = left * min(1, 2 / (1 + ceil((rest + 1) / at_once)))
            if limit < LEAST:
                self._progress(job, state="not begun: the time of its part was up")
            else:
                try:
                    self._do(job, limit)
                except OSError as error:  # no file or process for this job: the next may have one
                    self._progress(job, state=f"failed: {error}")
                    print(f"    {job}: failed: {error}", flush=True)

    def _do(self, job: str, limit: float) -> None:
        begin = self._since()
        self._progress(job, state="running", limit=round(limit, 1))
        # A compiler's files of its own: a job that is cut off leaves some half written, on which another job, or a user's program
        # that finds them in the folder for all, would fail.
        compiled = self._folder / "compiled" / job
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(compiled)}
        with open(self._folder / "logs" / f"{job}.txt", "wb") as log:
            command = [sys.executable, "-m", "gpu_kit.job", job, self._device, str(self._folder)]
            with self._lock:
                if self._stopped:
                    return
                process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self._running.add(process)
            try:
                status = process.wait(limit)
                state = {0: "done", ABSENT: "absent"}.get(status, f"failed: exit status {status}, see logs/{job}.txt")
            except subprocess.TimeoutExpired:
                state = f"cut off after {limit:.0f} s"
            finally:
                _kill(process)
                assert process.stdin is not None
                process.stdin.close()
                with self._lock:
                    self._running.discard(process)
                shutil.rmtree(compiled, ignore_errors=True)
        if not self._stopped:
            self._progress(job, state=state, seconds=round(self._since() - begin, 1))
            print(f"    {job}: {state} ({self._since() - begin:.0f} s)", flush=True)

    def _progress(self, job: str, **entries: Any) -> None:
        for name, value in entries.items():
            _attempt(self._folder, lambda name=name, value=value: record(self._folder, "progress", job, name, value=value))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends a job with all that it has started: its group is its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _attempt(folder: Path, write: Callable[[], None]) -> bool:
    """Writes a file of the kit. Where that fails, as on a full disk, it says so, and the kit goes on: a later file may fit."""
    try:
        write()
    except OSError as error:
        print(f"==> {folder} does not take a file: {error.strerror or error}", file=sys.stderr, flush=True)
        return False
    return True


#: What asks the kit to end: `kill`, Ctrl-C, and a terminal that closes.
ASKS_TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


_asked: list[int] = []


def _interrupted(number: int, _: Any) -> None:
    _asked.append(number)
    if len(_asked) == 1:  # who asks again gets the summary too: it takes a moment
        raise KeyboardInterrupt


def main() -> int:
    """The exit status that README.md lists."""
    parser = argparse.ArgumentParser(prog="bash run", description="Runs the golden vectors and measures the balancers on a GPU.")
    parser.add_argument("folder", metavar="OUT", type=Path, help="where files go; new or empty")
    parser.add_argument("minutes", metavar="MINUTES", type=float, nargs="?", default=8.0)
    given = parser.parse_args()
    device, only, folder = os.environ.get("DEVICE", "cuda"), os.environ.get("ONLY", "").split(), given.folder.absolute()
    jobs = [job for part in parts(device) for queue in part.queues for job in queue.jobs]
    lanes = {job.partition(".")[0] for job in jobs}
    if device not in ("cuda", "cpu"):
        parser.error(f"DEVICE must be cuda or cpu. Received {device!r}.")
    if unknown := [job for job in only if job not in lanes.union(jobs)]:
        parser.error(f"ONLY must name jobs of {', '.join(jobs)}, or lanes. Received {', '.join(unknown)}.")
    if not 0 < given.minutes * 60 < inf:
        parser.error(f"MINUTES must be above 0, and finite. Received {given.minutes}.")
    try:
        if folder.exists() and any(folder.iterdir()):
            parser.error(f"OUT must be new or empty: {folder} has files. Name another folder.")
        (folder / "logs").mkdir(parents=True)  # of two kits that begin at once, one makes it
        with open(folder / ".lock", "w"):
            pass
    except OSError as error:
        parser.error(f"OUT must be a folder that takes files: {folder}: {error.strerror or error}. Name another folder.")
    kit = Kit(folder, device, given.minutes, only)
    try:
        for each in ASKS_TO_END:
            if signal.getsignal(each) is not signal.SIG_IGN:  # `nohup`, and a shell for what runs in its background, ignore some
                signal.signal(each, _interrupted)
        for name, value in {"device": device, "minutes": given.minutes, "only": only, **basics(device)}.items():
            _attempt(folder, lambda name=name, value=value: record(folder, "host", name, value=value))
        kit.run()
    except KeyboardInterrupt:
        print("==> interrupted; what was found so far:", flush=True)
    finally:
        kit.stop()
    wanted = [job for job in jobs if not only or job in only or job.partition(".")[0] in only]
    text = summary(folder, wanted)
    written = _attempt(folder, lambda: write_text(folder / "summary.txt", text))
    print(text, end="", flush=True)
    status = verdict({name: read(folder, name) for name in ("progress", "certificate", "quotients", "costs")}, wanted)
    return status or (0 if written else INCOMPLETE)


if __name__ == "__main__":
    make_streams_last()  # a terminal that closes, or a reader that goes away, ends no job
    try:
        status = main()
    except Exception:
        traceback.print_exc()
        status = UNEXPECTED
    sys.exit(status)
