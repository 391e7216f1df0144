"""What preflight.py checks on one machine: versions, the folder of runs, its bucket, disk space."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def versions() -> dict[str, str]:
    """What has to be equal on all workers; starts no backend."""
    found = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "libtpu", "kd_jax"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found | {"revision": _revision()}


def _revision() -> str:
    """The commit that push.sh noted, else git's; "unknown" outside both."""
    noted = ROOT / "REVISION"
    if noted.exists():
        return noted.read_text().strip()
    try:
        git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        done = subprocess.run(git, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def compare(rows: Sequence[dict[str, str]]) -> list[str]:
    """What differs between the processes' versions, in words; row i is process i's."""
    problems = []
    for name in rows[0]:
        where: dict[str, list[str]] = {}
        for index, row in enumerate(rows):
            where.setdefault(row.get(name, "none"), []).append(str(index))
        if len(where) > 1:
            said = "; ".join(f"{value} on {', '.join(on)}" for value, on in where.items())
            problems.append(f"{name} {said}")
    return problems


def bucket_of(folder: Path, mounts: str) -> str | None:
    """The bucket that gcsfuse has mounted over `folder`; mounts: the text of /proc/mounts."""
    best, bucket = "", None
    for line in mounts.splitlines():
        source, point, kind = line.split()[:3]
        inside = folder.is_relative_to(point)
        if inside and len(point) >= len(best):
            best, bucket = point, source if "gcsfuse" in kind else None
    return bucket


def bucket_problems(facts: dict[str, Any], zone: str) -> list[str]:
    """Why a bucket should not hold runs of workers in `zone`; facts: what gcloud says of it."""
    problems = []
    location, region = facts["location"].lower(), zone.rsplit("-", 1)[0].lower()
    if location != region:
        problems.append(
            f"it lies in {location} and the workers in {region}: data that crosses regions is slow "
            "and paid for; use a bucket of the workers' region (or give --bucket-region, where a "
            "dual region has a copy there)"
        )
    if "name" in facts and not facts.get("hierarchicalNamespace", {}).get("enabled"):
        problems.append(
            "it has no hierarchical namespace: there, renaming a folder, which finishes a stage, "
            "is no single step; make one with --enable-hierarchical-namespace"
        )
    return problems


def check_bucket(
    workdir: Path, location: str | None, zone: str | None, mounts: Path = Path("/proc/mounts")
) -> tuple[str | None, str]:
    """(problem, what is fine): is the bucket under `workdir` one that runs should be in?

    location, zone: the bucket's and the workers' where they are known; gcloud and the metadata
    server are asked otherwise. Neither a problem nor fine where nobody knows.
    """
    name = bucket_of(workdir.resolve(), mounts.read_text() if mounts.exists() else "")
    if name is None and not location:
        return None, f"{workdir} is on no bucket"
    facts = _describe(name) if name else {}
    if location:
        facts["location"] = location
    zone = zone or (_zone() if facts else None)
    if not facts or not zone:
        return None, ""
    problems = bucket_problems(facts, zone)
    return "; ".join(problems) or None, f"bucket and workers in {facts['location'].lower()}"


def _describe(bucket: str) -> dict[str, Any]:
    """What the API says of a bucket, {} where gcloud is missing or may not ask."""
    command = ["gcloud", "storage", "buckets", "describe", f"gs://{bucket}", "--raw"]
    try:
        done = subprocess.run(
            [*command, "--format=json(name,location,hierarchicalNamespace)"],
            capture_output=True,
            text=True,
            timeout=20,
        )
        return json.loads(done.stdout) if done.returncode == 0 else {}
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}


def _zone() -> str | None:
    """This machine's zone, from Google's metadata server."""
    request = urllib.request.Request(
        "http://metadata.google.internal/computeMetadata/v1/instance/zone",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=3) as answer:
            return answer.read().decode().rsplit("/", 1)[-1]
    except OSError:
        return None


def try_write(folder: Path, name: str) -> str | None:
    """Writes, reads and deletes a file; the problem, or None."""
    file = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(file, "w") as opened:
            opened.write(name)
            opened.flush()
            os.fsync(opened.fileno())
        if file.read_text() != name:
            return f"{folder} gives back something else than was written"
        file.unlink()
    except PermissionError as error:
        return f"{error}: this user, or the workers' service account, may not write there"
    except OSError as error:
        return f"{error}: not a folder, not mounted, full or read-only"
    return None


def try_rename(folder: Path, name: str) -> str | None:
    """Renames a folder that holds a file, as finished checkpoints are; the problem, or None."""
    old, new = folder / f"{name}-old", folder / f"{name}-new"
    try:
        old.mkdir()
        (old / "file").write_text(name)
        old.rename(new)
        if (new / "file").read_text() != name or old.exists():
            return "the folder was renamed in part"
    except OSError as error:
        return (
            f"{error}: a folder cannot be renamed there, which finishes a stage; a bucket needs a "
            "hierarchical namespace (--enable-hierarchical-namespace)"
        )
    finally:
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(new, ignore_errors=True)
    return None


def free_gib(folder: Path) -> float:
    """GiB free on the disk of `folder`, or of its first parent that is there."""
    there = next(p for p in (folder, *folder.parents) if p.exists())
    return shutil.disk_usage(there).free / 2**30
