#!/usr/bin/env python3
"""Writes 4-layer models of the real widths of GLM-4.5-Air and GLM-4.7-Flash with random weights, and
what transformers says of them: too large to keep, made where a GPU is.

    python3 tests/golden/make_width.py OUT        needs torch with CUDA and transformers 5

OUT/NAME is the checkpoint, OUT/NAME.expected.safetensors has `ids`, `logits` (BF16 weights and
activations) and `logits_f32` (the same weights, activations in F32). build/.../bin/width_compare holds
the engine to them.
"""

import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers import Glm4MoeForCausalLM, Glm4MoeLiteForCausalLM

import make_glm4_moe as plain
import make_glm4_moe_lite as lite

TOKENS = 144

AIR = dict(
    style="hub", shards=4, dtype="bfloat16",
    hidden_size=4096, num_attention_heads=96, num_key_value_heads=8, head_dim=128,
    num_hidden_layers=4, first_k_dense_replace=1, intermediate_size=10944,
    n_routed_experts=128, num_experts_per_tok=8, moe_intermediate_size=1408,
    use_qk_norm=False, attention_bias=True, routed_scaling_factor=1.0, norm_topk_prob=True,
    rope_theta=1000000, partial_rotary_factor=0.5, vocab_size=151552)

FLASH = dict(
    style="hub", shards=2, dtype="bfloat16",
    hidden_size=2048, num_attention_heads=20, q_lora_rank=768, kv_lora_rank=512,
    qk_nope_head_dim=192, qk_rope_head_dim=64, v_head_dim=256,
    num_hidden_layers=4, dense=1, intermediate_size=10240,
    n_routed_experts=64, num_experts_per_tok=4, moe_intermediate_size=1536,
    routed_scaling_factor=1.8, norm_topk_prob=True, rope_theta=1000000, vocab_size=154880)


@torch.no_grad()
def draw_weights(model, seed):
    """As make_glm4_moe's, drawn on the GPU."""
    generator = torch.Generator(device="cuda").manual_seed(seed)
    for name, tensor in model.state_dict(keep_vars=True).items():
        std, mean = tensor.shape[-1] ** -0.5, 0.0
        if name.endswith("norm.weight") or "layernorm" in name:
            std, mean = 0.2, 1.0
        elif name.endswith("e_score_correction_bias"):
            std = 0.05
        elif name.endswith("bias"):
            std = 0.5
        elif name.endswith("embed_tokens.weight"):
            std = 1.0
        tensor.data.normal_(mean, std, generator=generator)


@torch.no_grad()
def make(out, name, case, cls, module):
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = cls(module.make_config(case)).eval()
    torch.set_default_dtype(torch.float32)
    if module is lite:
        lite.set_latent_epsilon(model, model.config.rms_norm_eps)
    for tensor_name, tensor in model.named_buffers():
        if tensor_name.endswith("e_score_correction_bias"):
            tensor.data = tensor.data.float()
    draw_weights(model, 1)
    model.model.rotary_emb.to("cuda")
    ids = torch.randint(0, case["vocab_size"], (TOKENS,), generator=torch.Generator().manual_seed(1))
    module.write_folder(out / name, case, model)
    batch = ids[None].cuda()
    logits = model(input_ids=batch, use_cache=False).logits[0].float().cpu()
    wide = model.float()
    logits_f32 = wide(input_ids=batch, use_cache=False).logits[0].float().cpu()
    save_file({"ids": ids.int(), "logits": logits.contiguous(), "logits_f32": logits_f32.contiguous()},
              out / f"{name}.expected.safetensors")
    cosine = torch.nn.functional.cosine_similarity(logits, logits_f32, dim=-1)
    print(f"{name}: logits std {logits.std():.2f}, transformers in BF16 against F32: cosine "
          f"{cosine.min():.6f} at least, {cosine.mean():.6f} in the mean", flush=True)


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    transformers.utils.logging.disable_progress_bar()
    for name, case, cls, module in (("flash", FLASH, Glm4MoeLiteForCausalLM, lite),
                                    ("air", AIR, Glm4MoeForCausalLM, plain)):
        make(out, name, case, cls, module)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
