"""The federation's model and its versions."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from gradshard.client.privacy_accounting import budget_of, epsilon_of
from gradshard.client.stack import Stack
from gradshard.updates.downloads import fetch_tensors
from gradshard.updates.tensors import Array
from gradshard.updates.upload_source import model_content_of
from gradshard.updates.uploads import Progress, upload
from gradshard_core.aggregation.batchnorm_buffers import (
    check_patterns,
    conventional,
    named,
    names_in,
    stretches_of,
)
from gradshard_core.errors import ModelStateError, PrivacyBudgetError
from gradshard_core.formats.object_keys import DEFAULT_MODEL, ModelKeys, StoredTensors
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.records import model_registry
from gradshard_core.records.model_registry import Version
from gradshard_core.records.privacy_ledger import PrivacyLedger, change_ledger, read_ledger


class Model:
    """A federation's model: its current version and earlier ones.

    Parameters
    ----------
    stack
        The deployed stack that holds the model.
    name
        The name of the model.
    """

    def __init__(self, stack: Stack, name: str = DEFAULT_MODEL) -> None:
        self._keys = ModelKeys(name)
        self._stack = stack

    def __repr__(self) -> str:
        return f"Model({self.name!r})"

    @property
    def name(self) -> str:
        """The name of the model."""
        return self._keys.name

    def current(self) -> Version:
        """Return the newest version.

        Raises
        ------
        ModelNotFoundError
            There is no such model yet.
        """
        return model_registry.read_current(self._stack.store, self.name)

    def version(self, number: int) -> Version:
        """Return a version by its number.

        Raises
        ------
        ModelNotFoundError
            There is none.
        """
        return model_registry.read_version(self._stack.store, self.name, number)

    def history(self) -> list[Version]:
        """Return the versions that exist, oldest first.

        Raises
        ------
        ModelNotFoundError
            There is no such model yet.
        """
        return model_registry.history(self._stack.store, self.name)

    @overload
    def fetch(
        self, *, version: int | None = None, progress: Progress | None = None
    ) -> dict[str, Array]: ...

    @overload
    def fetch(
        self, path: str | Path, *, version: int | None = None, progress: Progress | None = None
    ) -> Path: ...

    def fetch(
        self,
        path: str | Path | None = None,
        *,
        version: int | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Array] | Path:
        """Fetch the model.

        Parameters
        ----------
        path
            The .safetensors file to write, in a few MB of memory; it appears when it is whole.
        version
            The number of the version; the current version if none is given.
        progress
            Called with the bytes received and the total.

        Returns
        -------
        dict or Path
            Arrays by name, which share one buffer; or ``path``.

        Raises
        ------
        ModelNotFoundError
            There is no such model or version.
        """
        found = self.current() if version is None else self.version(version)
        return fetch_tensors(self._stack.store, found.tensors.source, "", path, progress)

    def put(
        self,
        model: Mapping[str, Any] | str | Path,
        *,
        buffers: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> Version:
        """Make a version of the model from tensors or a file.

        The state of the optimizer starts anew. Rounds that began from the version before fail.

        Parameters
        ----------
        model
            Tensors by name (numpy arrays or torch tensors), or the path of a .safetensors file.
        buffers
            Names, or patterns of names, of tensors that rounds average and no optimizer steps. For
            PyTorch, use :func:`gradshard.torch.buffers`. By default the buffers of the version
            before, and tensors with BatchNorm's names
            (``gradshard_core.aggregation.batchnorm_buffers.CONVENTIONAL``). Integers are always
            buffers.
        progress
            Called with the bytes sent and the total.

        Raises
        ------
        UpdateError
            The file holds tensors that cannot be averaged.
        SpecError
            A pattern of ``buffers`` matches no tensor.
        ModelStateError
            Another version was made at the same time.
        """
        store = self._stack.store
        newest = model_registry.current(store, self.name)
        key = self._keys.put(uuid.uuid4().hex)
        with model_content_of(model) as content:
            averaged = _buffers(content.layout, buffers, newest)
            upload(store, key, content, progress)
            source = store.head(key)
            assert source is not None  # noqa: S101 - for mypy: it was just written
            tensors = StoredTensors(source, content.nbytes - content.layout.nbytes)
        try:
            number = newest.number + 1 if newest else 1
            return self._append(Version(self.name, number, tensors, buffers=averaged))
        except ModelStateError:
            store.delete(key)
            raise

    def roll_back(self, number: int) -> Version:
        """Make the newest version from an earlier one and its optimizer's state.

        Raises
        ------
        ModelNotFoundError
            There is no such version.
        ModelStateError
            The version is the current one, or another version was made at the same time.
        """
        newest, restored = self.current(), self.version(number)
        if number == newest.number:
            raise ModelStateError(f"version {number} of model {self.name!r} is the current one")
        return self._append(restored.copied_as(newest.number + 1))

    def privacy(self) -> PrivacyLedger:
        """Return the model's privacy ledger: its rounds, what each has revealed, and the budget.

        ``gradshard.client.privacy_accounting.epsilon_of(ledger.spent, delta)`` is ε so far.
        """
        return read_ledger(self._stack.store, self.name)

    def limit_privacy(self, epsilon: float, delta: float) -> PrivacyLedger:
        """Set the privacy budget: a round that would exceed it is refused before it opens.

        From then on, rounds without noise are refused, too. Rounds that were opened before count.

        Parameters
        ----------
        epsilon, delta
            The most that all rounds of the model may reveal about one client.

        Raises
        ------
        SpecError
            ε or δ is out of its bounds, or dp-accounting is not installed
            (``pip install 'gradshard[privacy]'``).
        PrivacyBudgetError
            The rounds so far have revealed more.
        ModelNotFoundError
            There is no such model yet.
        """
        self.current()
        budget = budget_of(epsilon, delta)

        def change(ledger: PrivacyLedger) -> PrivacyLedger:
            noiseless = [entry.round_id for entry in ledger.entries if entry.cost is None]
            if noiseless:
                raise PrivacyBudgetError(
                    f"round {noiseless[0]!r} of model {self.name!r} has no noise, so no budget "
                    "bounds what the model reveals. If nothing of the round has been planned yet, "
                    "cancel it, and set the budget then. Otherwise train another model, from data "
                    "of other clients"
                )
            if ledger.spent > budget.allowance:
                so_far = epsilon_of(ledger.spent, delta)
                raise PrivacyBudgetError(
                    f"the {len(ledger.entries)} rounds of model {self.name!r} have revealed ε "
                    f"{so_far:.4g} at δ {delta:g} so far, over the budget of {epsilon:g}: give a "
                    "larger one, or train another model, from data of other clients"
                )
            return replace(ledger, budget=budget)

        return change_ledger(self._stack.store, self.name, change)

    def prune(self, keep: int) -> list[Version]:
        """Delete old versions: their records, and the objects that no other version needs.

        Parameters
        ----------
        keep
            The number of newest versions to keep, at least one.

        Returns
        -------
        list of Version
            The deleted versions.

        Raises
        ------
        ValueError
            ``keep`` is not above zero.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}: the current version must stay")
        versions = self.history()
        old, kept = versions[:-keep], versions[-keep:]
        needed = {key for version in kept for key in version.keys}
        for version in old:
            self._stack.store.delete(self._keys.version(version.number))
        for key in {key for version in old for key in version.keys} - needed:
            self._stack.store.delete(key)
        return old

    def _append(self, new: Version) -> Version:
        made = model_registry.reserve(self._stack.store, new)
        model_registry.note_current(self._stack.store, self.name)
        return made


def _buffers(
    layout: Layout, stated: Sequence[str] | None, before: Version | None
) -> tuple[str, ...]:
    """Return the names of a new model's buffers, which include integer tensors."""
    if stated is None:
        names = conventional(layout, before.buffers if before else ())
    else:
        names = named(layout, check_patterns(stated))
    return names_in(layout, stretches_of(layout, names))
