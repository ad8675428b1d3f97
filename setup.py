"""The README as a package index shows it: what it links to and its pictures have absolute addresses there.

The repository's address is `Repository` under [project.urls] in pyproject.toml. Without one the README stays as it is.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def package_page(readme: str, repository: str, tag: str) -> str:
    """README.md with every relative link and picture turned to its place in the repository at a tag.

    Args:
        repository: such as https://code.example/owner/superpose; empty if there is none, and nothing is turned.
    """

    def turned(link: re.Match[str]) -> str:
        kind = "blob" if link[1].startswith("[") else "raw"
        return f"{link[1]}{repository.rstrip('/')}/{kind}/{tag}/{link[2]}"

    return re.sub(r"""(!?\[[^\]]*\]\(|\bsrc=")(?![a-z]+:|#)([^)"\s]+)""", turned, readme) if repository else readme


if __name__ == "__main__":
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"].get("urls", {})
    [version] = re.findall(r'__version__ = "(.+)"', (ROOT / "src/superpose/__init__.py").read_text("utf-8"))
    readme = (ROOT / "README.md").read_text("utf-8")
    setup(
        long_description=package_page(readme, urls.get("Repository", ""), f"v{version}"),
        long_description_content_type="text/markdown",
    )
