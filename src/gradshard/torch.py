"""PyTorch models and updates: a ``state_dict`` in, a ``state_dict`` out.

A client sends ``delta(before, after)``, and adds the average with ``apply(state_dict, update)``. If
the federation keeps the model, ``tensors(state_dict)`` makes its first version, and
``load(state_dict, model)`` the model to train. Importing this module imports torch; the rest of
gradshard does not.
"""

import copy
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gradshard_core.errors import UpdateError
from gradshard_core.formats.tensor_layout import shorten

try:
    import torch
except ImportError:
    raise ImportError(
        "gradshard.torch needs PyTorch: `pip install 'gradshard[torch]'`", name="torch"
    ) from None

if TYPE_CHECKING:
    from torch import Tensor

StateDict = Mapping[str, Any]

_FLOATS: Final = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_INTEGERS: Final = {
    getattr(torch, name)
    for name in ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32")
    if hasattr(torch, name)
}


def delta(before: StateDict, after: StateDict) -> dict[str, "Tensor"]:
    """Return the change that training made, for :meth:`~gradshard.client.round.Round.submit`.

    Floating-point differences keep their type and device. Integer ones, such as BatchNorm's
    ``num_batches_tracked``, become int64; their mean is rounded half to even. Tensors that share
    memory share their difference, but the update has each of their names: a copy on another device
    unties them, and all updates must have the same layout.

    Types that cannot be averaged are left out, and must not have changed: booleans (masks), complex
    and 8-bit floating-point numbers. Entries that are not tensors (``_extra_state``) are left out.

    Parameters
    ----------
    before, after
        The model's ``state_dict()`` before and after training, or the same part of both.
        ``state_dict()`` does not copy, so clone the tensors before training.

    Returns
    -------
    dict
        Tensors by name.

    Raises
    ------
    UpdateError
        The two differ in names, types or shapes, or a tensor cannot be subtracted.
    """
    _check_names(before, after)
    update: dict[str, Tensor] = {}
    known: dict[Any, Tensor] = {}
    with torch.no_grad():
        for name, new in after.items():
            old = before[name]
            if not is_tensor(name, new) or not is_tensor(name, old):
                continue
            _check_same(name, old, new)
            if new.dtype not in _FLOATS | _INTEGERS:
                _check_unchanged(name, old, new)
                continue
            pair = (_identity(old), _identity(new))
            if pair not in known:
                known[pair] = _difference(old, new)
            update[name] = known[pair]
    return update


def apply(state_dict: StateDict, update: Mapping[str, Any], scale: float = 1.0) -> dict[str, Any]:
    """Add an update to a model.

    Each new element is ``old + scale * change``, multiplied and added in the tensor's own type, or
    in float32 if that is float16 or bfloat16, and rounded once. Integers are added exactly: the
    scaled change is rounded half to even, and the sum held within the bounds of narrow types.

    Parameters
    ----------
    state_dict
        The model's ``state_dict()``; it stays as it is.
    update
        The result of :meth:`gradshard.client.round.Round.fetch`, or tensors of any device. Tensors
        that it lacks stay unchanged, so an update may be of a part of the model.
    scale
        The factor of the update: a server's learning rate. Buffers are scaled, too: above 1,
        BatchNorm's running variance may fall below zero.

    Returns
    -------
    dict
        A new ``state_dict`` of the same class, with the same names, types, devices and strides.
        New tensors share memory if the old ones were the same tensor.

    Raises
    ------
    UpdateError
        The update has a tensor that the model lacks, or that has another shape or kind; or two
        names of one tensor have different changes.
    """
    if not math.isfinite(scale):
        raise UpdateError(f"scale is {scale}, not a finite number")
    return _renewed(state_dict, update, "the update", lambda old, change: _sum(old, change, scale))


def tensors(state_dict: StateDict) -> dict[str, "Tensor"]:
    """Return the tensors of a model that can be averaged, for ``Model.put``.

    The layout is that of its updates: integers become int64, and the same types are left out as in
    :func:`delta`.

    Raises
    ------
    UpdateError
        A tensor is sparse, quantized or has no elements.
    """
    return {
        name: value.detach().to(torch.int64) if value.dtype in _INTEGERS else value.detach()
        for name, value in state_dict.items()
        if is_tensor(name, value) and value.dtype in _FLOATS | _INTEGERS
    }


def buffers(module: torch.nn.Module) -> list[str]:
    """Return the names of a model's buffers, for :meth:`gradshard.client.model.Model.put`.

    They are the tensors of :func:`tensors` that are no parameters, such as BatchNorm's statistics:
    training measures them, and no optimizer steps them.

    Raises
    ------
    UpdateError
        The errors of :func:`tensors`.
    """
    state = module.state_dict(keep_vars=True)
    return [name for name in tensors(state) if not isinstance(state[name], torch.nn.Parameter)]


def load(state_dict: StateDict, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's ``state_dict`` with the values of a version of the federation's model.

    Parameters
    ----------
    state_dict
        The model's ``state_dict()``; it stays as it is.
    model
        The result of :meth:`gradshard.client.round.Round.fetch_model` or
        :meth:`gradshard.client.model.Model.fetch`. Tensors that it lacks stay unchanged.

    Returns
    -------
    dict
        The result of :func:`apply`.

    Raises
    ------
    UpdateError
        It has a tensor that the model lacks, or that has another shape or kind; or two names of
        one tensor have different values.
    """
    return _renewed(state_dict, model, "the model that was fetched", _replaced)


def _renewed(
    state_dict: StateDict,
    values: Mapping[str, Any],
    source: str,
    make: Callable[["Tensor", "Tensor"], "Tensor"],
) -> dict[str, Any]:
    """Return the tensors, each combined with its value if there is one."""
    extra = next((name for name in values if name not in state_dict), None)
    if extra is not None:
        raise UpdateError(f"tensor {shorten(str(extra))!r} of {source} is not in the model")
    used: dict[Any, tuple[str, Tensor]] = {}
    new: dict[Any, Tensor] = {}
    # A shallow copy keeps the class and the versions that modules note beside their tensors.
    result: Any = copy.copy(state_dict)
    with torch.no_grad():
        for name, given in values.items():
            old, value = state_dict[name], _as_tensor(name, given, source)
            _check_fits(name, old, value, source)
            identity = _identity(old)
            if identity not in new:
                used[identity], new[identity] = (name, value), make(old, value)
                continue
            # Another of its names has made it already.
            other, same = used[identity]
            if not torch.equal(same, value):
                raise UpdateError(
                    f"{shorten(other)!r} and {shorten(name)!r} are one tensor in the model, but "
                    f"differ in {source}: leave one of them out"
                )
        for name, old in state_dict.items():
            if isinstance(old, torch.Tensor) and _identity(old) in new:
                result[name] = new[_identity(old)]
    return result  # type: ignore[no-any-return]


def is_tensor(name: str, value: Any) -> bool:
    """Return whether an entry of a ``state_dict`` is a tensor whose elements can be read.

    Raises
    ------
    UpdateError
        The tensor is of a kind that cannot be averaged.
    """
    if not isinstance(value, torch.Tensor):
        return False
    shown = shorten(name)
    if value.layout != torch.strided:
        raise UpdateError(f"tensor {shown!r} is sparse ({value.layout}): make it dense, to_dense()")
    if value.is_quantized:
        raise UpdateError(f"tensor {shown!r} is quantized ({value.dtype}): dequantize() it first")
    if value.is_meta:
        raise UpdateError(f"tensor {shown!r} is on the meta device and has no elements")
    return True


def _difference(old: "Tensor", new: "Tensor") -> "Tensor":
    old = old.to(new.device)
    if new.dtype in _INTEGERS:
        return new.to(torch.int64) - old.to(torch.int64)
    return new.detach() - old.detach()


def _sum(old: "Tensor", change: "Tensor", scale: float) -> "Tensor":
    change = change.to(old.device)
    result = torch.empty_like(old, requires_grad=False)
    if old.dtype in _INTEGERS:
        # Nothing is lost by the way over float64 unless something is to be scaled.
        step = change if scale == 1 else (change.double() * scale).round()
        bounds = torch.iinfo(old.dtype)
        total = old.to(torch.int64) + step.to(torch.int64)
        return result.copy_(total.clamp_(bounds.min, bounds.max))
    if old.dtype in {torch.float64, torch.float32}:
        torch.mul(change.to(old.dtype), scale, out=result)
        return result.add_(old)
    return result.copy_(change.float().mul(scale).add_(old.float()))


def _replaced(old: "Tensor", value: "Tensor") -> "Tensor":
    if old.dtype in _INTEGERS:
        bounds = torch.iinfo(old.dtype)
        value = value.to(torch.int64).clamp(bounds.min, bounds.max)
    return torch.empty_like(old, requires_grad=False).copy_(value)


def _as_tensor(name: str, value: Any, source: str) -> "Tensor":
    """Return a tensor, which may be an array, as a tensor."""
    if isinstance(value, torch.Tensor):
        return value
    array = np.asarray(value)
    try:
        if array.dtype.name == "bfloat16":
            # torch knows numpy's types only: take the bits.
            return _from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return _from_numpy(array)
    except TypeError as error:
        raise UpdateError(f"tensor {shorten(name)!r} of {source}: {error}") from None


def _from_numpy(array: "np.ndarray[Any, Any]") -> "Tensor":
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    # torch warns of memory that must not be written, such as a file's, and takes no reversed axes.
    usable = native.flags.writeable and all(stride >= 0 for stride in native.strides)
    return torch.from_numpy(native if usable else native.copy())


def _identity(tensor: "Tensor") -> tuple[Any, ...]:
    """Return a value that is equal for two entries if they share one tensor."""
    return (
        tensor.device,
        tensor.data_ptr(),
        tensor.dtype,
        tuple(tensor.shape),
        tensor.stride(),
    )


def _check_names(before: StateDict, after: StateDict) -> None:
    for one, other, where in ((before, after, "before"), (after, before, "after")):
        alone = next((name for name in one if name not in other), None)
        if alone is not None:
            raise UpdateError(
                f"tensor {shorten(str(alone))!r} is only in the state {where} training"
            )


def _check_same(name: str, old: "Tensor", new: "Tensor") -> None:
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        raise UpdateError(
            f"tensor {shorten(name)!r} was {old.dtype} {list(old.shape)} before training, but is "
            f"{new.dtype} {list(new.shape)} after it"
        )


def _check_unchanged(name: str, old: "Tensor", new: "Tensor") -> None:
    # By their bits: NaN is not equal to itself, and 8-bit floats are not compared everywhere.
    if not torch.equal(_bytes(old), _bytes(new)):
        raise UpdateError(
            f"tensor {shorten(name)!r} is {new.dtype}, which cannot be averaged, but training "
            "changed it: leave it out of both states"
        )


def _bytes(tensor: "Tensor") -> "Tensor":
    return tensor.detach().cpu().resolve_conj().contiguous().reshape(-1).view(torch.uint8)


def _check_fits(name: str, old: Any, value: "Tensor", source: str) -> None:
    shown = shorten(name)
    if not is_tensor(name, old):
        raise UpdateError(f"{shown!r} is no tensor in the model, but one in {source}")
    if not is_tensor(name, value) or value.shape != old.shape:
        raise UpdateError(
            f"tensor {shown!r} of {source} has shape {list(value.shape)}, but the model's has "
            f"{list(old.shape)}"
        )
    for kind, types in (("floating-point", _FLOATS), ("integer", _INTEGERS)):
        if old.dtype in types:
            if value.dtype not in types:
                raise UpdateError(
                    f"tensor {shown!r} of {source} is {value.dtype}, but the model's is {kind} "
                    f"({old.dtype})"
                )
            return
    raise UpdateError(f"tensor {shown!r} of the model is {old.dtype}, which cannot be averaged")
