"""Names of tensors that a wrapper changed when a state dict was saved.

`torch.compile` saves `_orig_mod.weight`, `DataParallel` `module.weight`, FSDP and activation checkpointing parts of
their own, and training frameworks the name of the attribute that holds the model. The tensors are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

# Parts of a name that no module of a model has.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
LEADING_WRAPPER = "module"  # of DataParallel; stripped where every name begins with it


def unwrap_names(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Removes the parts that wrappers added to the names of a state dict.

    Args:
        names: names of all tensors of a model.

    Returns:
        The new name of each name, and the parts that were removed (empty: nothing was). If two names would become one,
        the file holds the model twice: nothing is removed then.
    """
    names = list(names)
    new = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names}
    removed = [part for part in WRAPPERS if any(part in name.split(".") for name in names)]
    while new and all(name.startswith(f"{LEADING_WRAPPER}.") for name in new.values()):
        new = {name: short.removeprefix(f"{LEADING_WRAPPER}.") for name, short in new.items()}
        removed = removed if LEADING_WRAPPER in removed else [*removed, LEADING_WRAPPER]
    if len(set(new.values())) != len(names) or not all(new.values()):
        return {name: name for name in names}, []
    return new, removed


def common_prefix(names: Collection[str], expected: Collection[str]) -> str:
    """Finds what stands before every name, such as `model.` or `model.diffusion_model.`.

    Args:
        names: names of the tensors in a file.
        expected: names of the model's tensors.

    Returns:
        The prefix without which most names are those of the model; empty if there is none, or no need.
    """
    known = set(expected)
    if not names or any(name in known for name in names):
        return ""
    first = next(iter(names)).split(".")
    for count in range(1, len(first)):
        prefix = ".".join(first[:count]) + "."
        if not all(name.startswith(prefix) for name in names):
            return ""
        if sum(name[len(prefix) :] in known for name in names) * 2 > len(names):
            return prefix
    return ""


def several_models(names: Iterable[str], expected: Collection[str]) -> list[str]:
    """Finds the prefixes of a file that holds a model more than once, such as its weights and their moving average.

    Returns:
        The prefixes, sorted; empty if the model is in the file at most once.
    """
    known = set(expected)
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        counts.update({".".join(parts[:i]) + "." for i in range(1, len(parts)) if ".".join(parts[i:]) in known})
    prefixes = sorted(prefix for prefix, count in counts.items() if count * 2 > len(known))
    return prefixes if len(prefixes) > 1 else []
