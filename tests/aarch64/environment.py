"""An aarch64 Python with what merging needs, run by qemu's user emulation. Made once, as any user.

The system's packages come from the Debian 12 sources of this host and are only unpacked; the others are
wheels in the versions that are installed here. What was cut off is made again.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PLACE: Final = ROOT / ".nightly" / "aarch64"
PYTHON: Final = "python3.11"
DEBIAN: Final = "bookworm"
SYSTEM: Final = (
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1", "libstdc++6",
    "zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5", "libsqlite3-0", "libuuid1",
    "libcrypt1",
)  # fmt: skip
"""Packages of the emulated machine."""
EMULATOR: Final = "qemu-user-static"
WHEELS: Final = (
    "numpy", "blake3", "msgpack", "cryptography", "cffi", "pycparser",
    "pytest", "iniconfig", "packaging", "pluggy", "pygments",
)  # fmt: skip
GLIBC_MINORS: Final = range(17, 37)
"""Wheels built against glibc 2.17 to 2.36 run there."""
SOURCES: Final = ("protocol", "proto", "node", "tests", ".")
TRIES: Final = 3
PAUSE_S: Final = 3.0
APT_CONFIGURATION = """\
APT::Architecture "{host}";
APT::Architectures {{ "{host}"; "arm64"; }};
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State "{place}/state";
Dir::State::status "/dev/null";
Dir::Cache "{place}/cache";
Dir::Etc::sourcelist "{place}/sources.list";
Dir::Etc::sourceparts "-";
"""


class EnvironmentMissingError(Exception):
    """This host cannot make the environment; the message says what it lacks."""


def prepare() -> None:
    """Make what is not there yet.

    Raises:
        EnvironmentMissingError: No Debian 12 sources, no apt or no dpkg here.
        subprocess.CalledProcessError: Something cannot be fetched, after some tries; its output says why.
    """
    versions = [f"{name}=={metadata.version(name)}" for name in WHEELS if _is_installed(name)]
    own = metadata.distribution("crdt-merge-node")
    _make("debs", " ".join((EMULATOR, *SYSTEM)), _download)
    _make("root", " ".join(sorted(path.name for path in (PLACE / "debs").glob("*.deb"))), _unpack)
    _make("site", " ".join((*versions, own.version)), lambda place: _install(place, versions, own))


def command(*arguments: str) -> list[str]:
    """Return the command that runs the emulated Python with these arguments; see :func:`variables`."""
    root = PLACE / "root"
    return [str(root / "emulator"), "-L", str(root), str(root / "usr/bin" / PYTHON), *arguments]


def variables() -> dict[str, str]:
    """Return the variables that the emulated Python needs to find its packages and the project."""
    paths = [PLACE / "site", *(ROOT / name for name in SOURCES)]
    return {"PYTHONPATH": ":".join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"}


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _make(name: str, inputs: str, make: Callable[[Path], None]) -> None:
    """Make a folder from these inputs, unless it was made from the same."""
    place, stamp = PLACE / name, PLACE / f"{name}.made"
    if stamp.exists() and stamp.read_text() == inputs:
        return
    stamp.unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    make(place)
    stamp.write_text(inputs)


def _download(place: Path) -> None:
    missing = [tool for tool in ("apt-get", "dpkg", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise EnvironmentMissingError(f"No {' or '.join(missing)} here: this needs a Debian 12 host.")
    host = _output("dpkg", "--print-architecture").strip()
    apt = PLACE / "apt"
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "sources.list").write_text("\n".join(_sources()) + "\n")
    (apt / "apt.conf").write_text(APT_CONFIGURATION.format(host=host, place=apt))
    get = ["env", f"APT_CONFIG={apt / 'apt.conf'}", "apt-get", "--quiet"]
    _run_with_tries([*get, "update"])
    wanted = [f"{EMULATOR}:{host}", *(f"{name}:arm64" for name in SYSTEM)]
    _run_with_tries([*get, "download", *wanted], folder=place)


def _sources() -> list[str]:
    """Return the lines of this host's own sources that are of Debian itself."""
    targets = _output("apt-get", "indextargets", "Created-By: Packages").split("\n\n")
    found = []
    for target in targets:
        fields = dict(line.split(": ", 1) for line in target.splitlines() if ": " in line)
        if fields.get("Component") == "main" and fields.get("Release", "").split("-")[0] == DEBIAN:
            key = f"[signed-by={fields['Signed-By']}] " if fields.get("Signed-By") else ""
            found.append(f"deb {key}{fields['Repo-URI']} {fields['Release']} main")
    if not found:
        raise EnvironmentMissingError(f"apt has no sources of Debian {DEBIAN} here.")
    return sorted(set(found))


def _unpack(place: Path) -> None:
    for path in sorted((PLACE / "debs").glob("*_arm64.deb")):
        if not path.name.startswith(EMULATOR):
            subprocess.run(["dpkg", "-x", str(path), str(place)], check=True)
    (package,) = (PLACE / "debs").glob(f"{EMULATOR}_*.deb")
    archive = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE)
    with archive:
        member = "./usr/bin/qemu-aarch64-static"
        subprocess.run(["tar", "-x", "-C", str(place), member], stdin=archive.stdout, check=True)
    (place / "usr/bin/qemu-aarch64-static").rename(place / "emulator")


def _install(place: Path, versions: Sequence[str], own: metadata.Distribution) -> None:
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in GLIBC_MINORS]
    options = ("--python-version=311", "--only-binary=:all:", "--no-deps", "--disable-pip-version-check")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", f"--target={place}"]
    _run_with_tries([*pip, *platforms, "--platform=manylinux2014_aarch64", *options, *versions])
    about = place / f"crdt_merge_node-{own.version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(own.read_text("METADATA") or "")


def _run_with_tries(line: Sequence[str], folder: Path = ROOT) -> None:
    """Run something that asks the network, which may not answer at first."""
    for _ in range(TRIES - 1):
        if subprocess.run(line, cwd=folder, check=False).returncode == 0:
            return
        time.sleep(PAUSE_S)
    subprocess.run(line, cwd=folder, check=True)


def _output(*line: str) -> str:
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout
