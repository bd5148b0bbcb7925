"""Which configurations of PEFT mean what is merged here: a difference that factors alone tell.

Everything else is refused by name, with what to do instead. Some adapters only fit a base that was changed
when their training began: their factors hold what was taken out of its weights. On the base as it was
published, which is all that anybody else has, they would add that a second time.

Source: PEFT 0.21, ``LoraConfig`` and the initialisations in ``LoraLayer``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from crdt_merge_protocol.errors import ParameterError

_EXPAND: Final = "`lora expand ADAPTER --base BASE` makes the model of it, which `merge` takes."
_IN_PEFT: Final = "Merge it into its base with PEFT's merge_and_unload; `merge` takes the model."
_CONVERT: Final = (
    "Save it as a plain one, with save_pretrained(..., path_initial_model_for_weight_conversion=...), "
    "or merge it into its base with PEFT."
)
_REFUSED: Final = {
    "use_dora": ("its difference depends on the base's weights", _EXPAND),
    "layer_replication": ("it changes the layers of the base", ""),
    "alora_invocation_tokens": ("it is not always active", ""),
    "target_parameters": ("its factors are not of modules", _IN_PEFT),
    "lora_bias": ("it has a bias in its factors", _IN_PEFT),
    "trainable_token_indices": ("it changes single rows of an embedding", _IN_PEFT),
    "use_qalora": ("its factors are of groups of inputs", ""),
    "use_bdlora": ("its factors are cut into blocks", ""),
    "arrow_config": ("it chooses among adapters for every token", ""),
    "kasa_config": ("it cuts the base's weights and has a third factor", _IN_PEFT),
}
_BASE_CHANGING: Final = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Beginnings of ``init_lora_weights`` that take something out of the base's weights."""
_QUANTISED: Final = re.compile(
    r"(?<![a-z0-9])([48]-?bit|gptq|awq|gguf|int[48]|nf4|bnb|fp8)", re.ASCII | re.IGNORECASE
)
"""What names say of it, where a word begins."""


def refuse_unsupported(config: Mapping[str, Any], where: str, *, takes_dora: bool = False) -> None:
    """Refuse what is no difference of factors alone.

    Args:
        config: What ``adapter_config.json`` holds.
        where: Its name, for messages.
        takes_dora: Whoever asks has the base, which DoRA needs.

    Raises:
        ParameterError: It uses something else; the message says what, the hint what to do.
    """
    for key, (reason, hint) in _REFUSED.items():
        if config.get(key) and not (takes_dora and key == "use_dora"):
            raise ParameterError(f"{where}: {key} is not supported: {reason}.", hint=hint)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_BASE_CHANGING):
        raise ParameterError(
            f"{where}: init_lora_weights {start} is not supported: it took a part out of the base's weights "
            "when training began, so the factors do not fit the base as it was.",
            hint=_CONVERT,
        )


def quantised_base(name: str) -> bool:
    """Tell whether the name that an adapter gives its base is that of a quantised one."""
    return _QUANTISED.search(name) is not None
