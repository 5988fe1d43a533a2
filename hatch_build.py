"""What a wheel of gradshard carries beside the package: the application that `sam` deploys."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# gradshard.deployment.application reads them back from there.
CARRIED = (
    "template.yaml",
    "samconfig.toml",
    "LICENSE",
    "README.md",
    "statemachine",
    "functions",
    "layers/gradshard/requirements.txt",
)


class CarryApplication(BuildHookInterface):  # type: ignore[type-arg]
    """Put the application into `gradshard/app`, but not when the package is installed editable.

    The checkout itself is used then. A static `force-include` would leave copies that go stale.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Say what is included, and where."""
        if version == "standard":
            for path in CARRIED:
                build_data["force_include"][path] = f"gradshard/app/{path}"
