"""Folders that an earlier version of kray wrote; see fixtures/README.md."""

from __future__ import annotations

import sqlite3
import tarfile
from pathlib import Path

FIXTURES = Path(__file__).parent / "fixtures"
# What stands in the archives for the folder that they were made in.
PLACE = "/before"


def unpack(name: str, folder: Path) -> Path:
    """Unpack an archive into a folder and name that folder in its files; return the folder that was archived."""
    with tarfile.open(FIXTURES / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    for file in (folder / name).rglob("*"):
        if file.suffix in (".yaml", ".json", ".jsonl", ".txt", ".delivered"):
            file.write_text(file.read_text().replace(f"{PLACE}/", f"{folder}/"))
        elif file.suffix == ".db":
            with sqlite3.connect(file) as database:
                for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
                    database.execute(f"update {table} set {column} = replace({column}, '{PLACE}/', '{folder}/')")
            database.close()
    return folder / name
