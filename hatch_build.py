"""Build hook that adds the application, which `sam` deploys, to the wheel."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# gradshard.deployment.application_sources reads them back from there.
CARRIED = (
    "template.yaml",
    "samconfig.toml",
    "LICENSE",
    "README.md",
    "statemachine",
    "functions",
    "keeper",
    "layers/gradshard/requirements.txt",
    "layers/keeper/requirements.txt",
)


class CarryApplication(BuildHookInterface):  # type: ignore[type-arg]
    """Add the application to `gradshard/app` of the wheel.

    An editable installation uses the checkout instead: copies from a static `force-include` would
    go stale.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the files to include, and their places."""
        if version == "standard":
            for path in CARRIED:
                build_data["force_include"][path] = f"gradshard/app/{path}"
