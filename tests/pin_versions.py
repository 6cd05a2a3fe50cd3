"""Print the installed versions of everything that sparsight[dev,demo] needs, as a pip constraints file.

``make pins`` writes them to ``tests/constraints.txt``. CUDA libraries are left out: torch's own metadata pins them,
per platform. The newest versions leave old Pythons behind one by one, and a set pinned in part rarely resolves; so all
lines carry one marker, the oldest Python that takes the whole set. Below it the ranges in pyproject.toml decide.
"""

from __future__ import annotations

from importlib.metadata import distribution

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = "sparsight[dev,demo]"
PINNED_BY_TORCH = ("nvidia-", "cuda-", "triton")


def needed(root: str) -> dict[str, str]:
    """Canonical name and installed version of every distribution that ``root`` pulls in, without itself.

    Raises:
        PackageNotFoundError: One of them is not installed.
    """
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    queue = [Requirement(root)]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if name.startswith(PINNED_BY_TORCH):
            continue
        installed = distribution(name)
        versions[name] = installed.version
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                children = [Requirement(line) for line in installed.requires or []]
                queue += [c for c in children if c.marker is None or c.marker.evaluate({"extra": extra})]
    del versions[canonicalize_name(Requirement(root).name)]
    return versions


def oldest_python(requires_python: list[str]) -> str:
    """The oldest Python, from 3.10 on, that all ``Requires-Python`` values accept, such as ``3.11``."""
    accepted = SpecifierSet(",".join(filter(None, requires_python)))
    return next(f"3.{minor}" for minor in range(10, 30) if f"3.{minor}.99" in accepted)


def main() -> None:
    """Print the constraints file."""
    versions = sorted(needed(ROOT).items())
    oldest = oldest_python([distribution(name).metadata["Requires-Python"] for name, _ in versions])
    print("# The exact versions that the tests passed with; made by `make pins`, used by every make target.")
    print(f"# Older Pythons than {oldest} have no such set: there the ranges in pyproject.toml decide.")
    for name, version in versions:
        print(f'{name}=={version.split("+")[0]} ; python_version >= "{oldest}"')


if __name__ == "__main__":
    main()
