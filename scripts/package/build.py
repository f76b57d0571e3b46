#!/usr/bin/env python3
"""Makes a wheel and an archive of target/release/dslaunch and dslaunch-rank. Standard library and binutils only.

Owns: what lies where in both, and what machines they run on. The same programs give the same bytes.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import hashlib
import io
import re
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

from notices import third_party_notices

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = ["dslaunch", "dslaunch-rank"]
# What the archive has of docs/ and examples/.
PAGES = {".md", ".png", ".svg", ".toml", ".json", ".py"}
TORCH = "torch==2.11.*"
PYTHON = ">=3.10,<3.15"  # whose folders rank/build.rs names
SUMMARY = "Fine-tunes LLaMA-family models on the GPUs of one machine: a launcher and its ranks, in Rust on libtorch"

# Of every file in both packages, so that they do not tell when they were made: the first day that a zip can say.
DATE = (1980, 1, 1, 0, 0, 0)
EPOCH = 315532800


def version() -> str:
    section = (REPOSITORY / "Cargo.toml").read_text().split("[workspace.package]")[1]
    return re.search(r'^version = "(.+)"$', section, re.M)[1]


def program(name: str) -> bytes:
    """A program without symbols, and without the run path of the machine that it was built on."""
    with tempfile.TemporaryDirectory() as folder:
        stripped = Path(folder) / name
        subprocess.run(["strip", "-o", stripped, REPOSITORY / "target/release" / name], check=True)
        return without_last_run_path(stripped.read_bytes(), name)


def without_last_run_path(code: bytes, name: str) -> bytes:
    """Cuts the absolute path off the end of the run path that rank/build.rs writes; a program without one stays as it is."""
    found = re.findall(rb"\$ORIGIN/\.\./libtorch/lib(:[^\0]*)\0", code)
    if name == "dslaunch" and not found:
        return code
    if len(found) != 1:
        raise SystemExit(f"package: {name} has {len(found)} run paths that end as rank/build.rs writes them")
    return code.replace(found[0] + b"\0", b"\0" * (len(found[0]) + 1))


def platform() -> str:
    """The oldest glibc that has all that the programs ask for, as a tag of wheels."""
    needed = (2, 17)
    for name in PROGRAMS:
        symbols = subprocess.run(
            ["readelf", "-VW", REPOSITORY / "target/release" / name], check=True, capture_output=True, text=True
        ).stdout
        needed = max(needed, *(tuple(map(int, found)) for found in re.findall(r"GLIBC_(\d+)\.(\d+)", symbols)))
    header = subprocess.run(
        ["readelf", "-hW", REPOSITORY / "target/release/dslaunch"], check=True, capture_output=True, text=True
    ).stdout
    machine = {"X86-64": "x86_64", "AArch64": "aarch64"}[re.search(r"Machine:\s+.*?(X86-64|AArch64)", header)[1]]
    return f"manylinux_{needed[0]}_{needed[1]}_{machine}"


def metadata() -> str:
    fields = [
        ("Metadata-Version", "2.4"),
        ("Name", "dslaunch"),
        ("Version", version()),
        ("Summary", SUMMARY),
        ("License-Expression", "Apache-2.0"),
        ("License-File", "LICENSE"),
        ("License-File", "THIRD-PARTY.txt"),
        ("Requires-Python", PYTHON),
        ("Requires-Dist", TORCH),
        ("Description-Content-Type", "text/markdown"),
    ]
    return "".join(f"{name}: {value}\n" for name, value in fields) + "\n" + (REPOSITORY / "README.md").read_text()


def wheel(out: Path, programs: dict[str, bytes], licenses: dict[str, bytes]) -> Path:
    tag, stem = f"py3-none-{platform()}", f"dslaunch-{version()}"
    info = f"{stem}.dist-info"
    described = f"Wheel-Version: 1.0\nGenerator: dslaunch\nRoot-Is-Purelib: false\nTag: {tag}\n"
    files = {f"{stem}.data/scripts/{name}": (code, 0o755) for name, code in programs.items()}
    files |= {f"{info}/licenses/{name}": (text, 0o644) for name, text in licenses.items()}
    files |= {f"{info}/METADATA": (metadata().encode(), 0o644), f"{info}/WHEEL": (described.encode(), 0o644)}
    digest = lambda content: base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    record = "".join(f"{name},sha256={digest(content)},{len(content)}\n" for name, (content, _) in files.items())
    files[f"{info}/RECORD"] = (f"{record}{info}/RECORD,,\n".encode(), 0o644)
    path = out / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (content, mode) in files.items():
            entry = zipfile.ZipInfo(name, DATE)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, (0o100000 | mode) << 16
            archive.writestr(entry, content)
    return path


def told_by(*arguments: str) -> bytes:
    return subprocess.run([REPOSITORY / "target/release/dslaunch", *arguments], check=True, capture_output=True).stdout


def archive(out: Path, programs: dict[str, bytes], licenses: dict[str, bytes]) -> Path:
    stem = f"dslaunch-{version()}"
    files = {f"bin/{name}": (code, 0o755) for name, code in programs.items()}
    files |= {name: (text, 0o644) for name, text in licenses.items()}
    pages = [path for folder in ("docs", "examples") for path in (REPOSITORY / folder).rglob("*") if path.suffix in PAGES]
    texts = ["README.md", "CHANGELOG.md", *(str(path.relative_to(REPOSITORY)) for path in pages)]
    files |= {name: ((REPOSITORY / name).read_bytes(), 0o644) for name in texts}
    files["share/bash-completion/completions/dslaunch"] = (told_by("completions", "bash"), 0o644)
    files["share/zsh/site-functions/_dslaunch"] = (told_by("completions", "zsh"), 0o644)
    files["share/fish/vendor_completions.d/dslaunch.fish"] = (told_by("completions", "fish"), 0o644)
    files["share/man/man1/dslaunch.1"] = (told_by("man"), 0o644)
    path = out / f"{stem}-{platform()}.tar.gz"
    with path.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=EPOCH) as packed:
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, (content, mode) in sorted(files.items()):
                entry = tarfile.TarInfo(f"{stem}/{name}")
                entry.size, entry.mode, entry.mtime = len(content), mode, EPOCH
                tar.addfile(entry, io.BytesIO(content))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    programs = {name: program(name) for name in PROGRAMS}
    notices = third_party_notices(REPOSITORY).encode()
    licenses = {"LICENSE": (REPOSITORY / "LICENSE").read_bytes(), "THIRD-PARTY.txt": notices}
    for path in (wheel(out, programs, licenses), archive(out, programs, licenses)):
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
