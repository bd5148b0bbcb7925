"""Codes and scales are told from weights by what writers call them (STRATEGIES 1.3)."""

import pytest
from crdt_merge_protocol.blobs import TensorSpec
from crdt_merge_protocol.errors import DTypeMismatchError
from crdt_merge_protocol.quantised import quantised_as, require_plain

LAYER = "model.layers.0.self_attn.q_proj"
QUANTISED = {
    "GPTQ": {f"{LAYER}.qweight": "I32", f"{LAYER}.qzeros": "I32", f"{LAYER}.scales": "F16"},
    "bitsandbytes NF4": {
        f"{LAYER}.weight": "U8", f"{LAYER}.weight.absmax": "U8",
        f"{LAYER}.weight.quant_state.bitsandbytes__nf4": "U8",
    },
    "bitsandbytes int8": {f"{LAYER}.weight": "I8", f"{LAYER}.SCB": "F32"},
    "DeepSeek": {f"{LAYER}.weight": "F8_E4M3", f"{LAYER}.weight_scale_inv": "F32"},
    "compressed-tensors int8": {f"{LAYER}.weight": "I8", f"{LAYER}.weight_scale": "BF16"},
    "compressed-tensors int4": {f"{LAYER}.weight_packed": "I32", f"{LAYER}.weight_scale": "BF16"},
    "ComfyUI": {"blocks.0.weight": "F8_E4M3", "blocks.0.scale_weight": "F32", "scaled_fp8": "F8_E4M3"},
    "gpt-oss": {"mlp.experts.gate_up_proj_blocks": "U8", "mlp.experts.gate_up_proj_scales": "U8"},
    "HQQ": {f"{LAYER}.W_q": "U8", f"{LAYER}.scale": "F16"},
}  # fmt: skip
PLAIN = {
    "Llama": {f"{LAYER}.weight": "BF16", "model.norm.weight": "BF16"},
    "BERT": {"embeddings.position_ids": "I64", "encoder.layer.0.attention.self.query.weight": "F32"},
    "plain eight bits": {f"{LAYER}.weight": "F8_E4M3", "model.norm.weight": "BF16"},
    "CLIP": {"logit_scale": "F32", "ids": "U8"},
    "a network with a scale": {"layer.weight_scale": "F32", "layer.weight": "F32"},
    "attention of other names": {"attention.W_q": "F32", "ffn.qweight": "BF16", "mask": "U8"},
    "measured activations": {"act.absmax": "F32", "attention.k_scale": "F32", "layer.weight": "F16"},
    "batch norm": {"bn.num_batches_tracked": "I64", "bn.running_mean": "F32"},
}


def specs(tensors):
    return [TensorSpec(name=name, dtype=dtype, shape=(2, 2)) for name, dtype in tensors.items()]


@pytest.mark.parametrize("form", QUANTISED)
def test_codes_and_scales_are_refused_with_the_tensor_that_tells(form):
    tensors = QUANTISED[form]

    with pytest.raises(DTypeMismatchError, match=r"^a\.safetensors is quantised") as caught:
        require_plain(specs(tensors), who="a.safetensors")

    assert any(name in caught.value.message for name in tensors)
    assert "dequantize" in caught.value.hint


@pytest.mark.parametrize("form", PLAIN)
def test_plain_models_are_not_taken_for_quantised(form):
    assert quantised_as(specs(PLAIN[form])) == ("", "")
    require_plain(specs(PLAIN[form]), who="x")
