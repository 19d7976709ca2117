"""Compare ways to spend rollouts: methods x seeds on one policy, as children of one MLflow run, with a report.

    python jobs/compare.py configs/compare-quick.yaml
    python jobs/compare.py configs/compare-arithmetic.yaml --seeds 0-5
    python jobs/compare.py configs/compare-arithmetic.yaml --methods uniform,paper,static --dir ~/study train.lr=5e-5

The same command goes on where it was interrupted: runs that are done are not run again. A run whose driver or learner is lost
begins anew, at most run.max_restarts times; then it is given up, the others go on, and the exit code is 1. Methods, seeds and
what they share are in the file (kray/compare/study.py); `a.b=c` overrides a key for all methods but those that set it
themselves. All runs share one learner and its engines. The report (HTML, Markdown, PNG, SVG, JSON) is in <dir>/report and in
MLflow.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kray.cluster.address import require_cluster
from kray.cluster.folder_lock import FolderLock
from kray.cluster.session import connect
from kray.compare.failures import missing
from kray.compare.report import Report, write_figures, write_report
from kray.compare.study import Study, load_study
from kray.compare.verdicts import Verdict, line
from kray.driver.remote import share_prompts
from kray.driver.run_lock import lock_folder
from kray.launch.check import inspect
from kray.launch.main import guarded
from kray.launch.preflight import load_checked_prompts
from kray.train.start_model import find_model

# Runs that are not done and are named.
SHOWN = 6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="a comparison's YAML file, see configs/compare-*.yaml")
    parser.add_argument("--methods", default="", help="some of the file's, separated by commas (default: all)")
    parser.add_argument("--seeds", default="", help="such as 0-5 or 0,3 (default: the file's)")
    parser.add_argument("--dir", default="", help="where results go and are looked for (default: <run.dir>/<run.name>)")
    parser.add_argument("--flops", default="", metavar="P,T,G", help="of modelled FLOPs (default: 256,1024,3)")
    parser.add_argument("--sampled", action="store_true", help="sample accuracies where the file says exact: true")
    parser.add_argument("--json", metavar="FILE", help="where the figures go, with versions, cores and settings")
    parser.add_argument("--check", action="store_true", help="print what would run; start nothing")
    parser.add_argument("--report", action="store_true", help="write the report anew from what is done; start nothing")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="overrides of single keys, for all methods")
    given = parser.parse_intermixed_args()
    study = load_study(given.study, given.methods, given.seeds, given.dir, given.overrides, given.flops, given.sampled)
    todo = study.todo()
    if given.check:
        print(f"{study.describe()}\nmethods  {', '.join(study.methods)}\nfolder   {study.folder}")
        print(f"done     {len(study.children) - len(todo)}\nto run   {len(todo)}")
        samples = inspect(study.base).samples
        print("\n".join(["", "first prompts, as the policy reads them", *samples] if samples else []))
        return 0
    ended = None
    if not given.report:
        require_cluster()
        with lock_folder(study.folder, "a comparison") as lock:
            ended = run(study, lock)
    report = ended or report_of(study)
    print("\n".join([*(line(Verdict(**verdict)) for verdict in report.verdicts), *gaps(missing(study))]))
    if ended is not None:
        stopped = f", stopped {ended.stopped}: the same command goes on" if ended.stopped else ""
        print(f"\n{ended.done} of {ended.of} runs done{stopped}\nMLflow  {ended.open_command}")
    print(f"report  {report.page or 'none: no run is done'}", flush=True)
    if given.json and report.page:
        write_figures(study, Path(report.page), Path(given.json))
    return 1 if ended is not None and (ended.stopped or ended.failed) else 0


def gaps(missing: dict[str, str]) -> list[str]:
    """Return lines on the runs that are not done, those that were given up first."""
    lines = [f"given up  {name}: {why}" for name, why in missing.items() if why]
    left = [name for name, why in missing.items() if not why]
    few = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
    return [*lines, f"not done  {', '.join(left[:SHOWN])}{few}"] if left else lines


def report_of(study: Study) -> Report:
    """Write the report of what is done; no other job may write in the folder meanwhile."""
    if not study.folder.is_dir():
        return Report("", [], [])
    with lock_folder(study.folder, "the report of a comparison"):
        return write_report(study)


def run(study: Study, lock: FolderLock) -> Any:
    """Run what is not done on the cluster; return its Outcome."""
    # Loads torch and transformers, which takes seconds: whatever can be refused without them is refused before.
    from kray.compare.supervision import run_comparison

    prompts = load_checked_prompts(study.widest)
    model = find_model(study.base)
    connect(study.base)
    shared = share_prompts(prompts)
    del prompts
    return run_comparison(study, model, shared, lock)


if __name__ == "__main__":
    guarded(main)
