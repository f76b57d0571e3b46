"""The licences of the crates that the programs are made of, as their authors ask for."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from pathlib import Path

NAMES = re.compile(r"(LICEN[SC]E|COPYING|COPYRIGHT|NOTICE|UNLICENSE)", re.I)
RULE = "=" * 100


def crates(repository: Path) -> list[dict]:
    """What launcher and rank are linked with, by name. Neither build tools nor crates of the workspace."""
    command = [os.environ.get("CARGO", "cargo"), "metadata", "--format-version=1", "--locked"]
    command += ["--filter-platform", f"{platform.machine()}-unknown-linux-gnu"]
    told = json.loads(subprocess.run(command, cwd=repository, check=True, stdout=subprocess.PIPE).stdout)
    packages = {package["id"]: package for package in told["packages"]}
    nodes = {node["id"]: node for node in told["resolve"]["nodes"]}
    open_ids = [idx for idx, package in packages.items() if package["source"] is None and package["name"] in ("launcher", "rank")]
    found = set()
    while open_ids:
        idx = open_ids.pop()
        if idx not in found:
            found.add(idx)
            deps = nodes[idx]["deps"]
            open_ids += [dep["pkg"] for dep in deps if any(kind["kind"] is None for kind in dep["dep_kinds"])]
    linked = [packages[idx] for idx in found if packages[idx]["source"] is not None]
    return sorted(linked, key=lambda package: (package["name"], package["version"]))


def third_party_notices(repository: Path) -> str:
    """Names every crate with its licence, and gives each licence's text once."""
    lines, texts = [], {}
    for package in crates(repository):
        title = f"{package['name']} {package['version']}"
        lines.append(f"{title}: {package['license']}")
        folder = Path(package["manifest_path"]).parent
        for path in sorted(path for path in folder.iterdir() if path.is_file() and NAMES.match(path.name)):
            texts.setdefault(path.read_text(errors="replace").strip(), []).append(title)
    parts = ["dslaunch is made with these crates, under these licences:\n\n" + "\n".join(lines)]
    parts += [f"{RULE}\n{', '.join(titles)}\n{RULE}\n\n{text}" for text, titles in texts.items()]
    return "\n\n".join(parts) + "\n"
